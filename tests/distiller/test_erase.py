import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distiller.bundle import load_bundle
from distiller.erase import erase, redo
from distiller.settings import Settings
from proxy.backup import back_up
from proxy.errors import Unavailable
from proxy.exchange import Exchange
from proxy.feedback import FEEDBACK, STILLROOM, respond
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.patterns import SECRETS_ONLY, Redaction
from proxy.redact import Redactor
from proxy.settings import SpoolSettings
from proxy.spool import SpoolWriter
from router.controller import only_one
from router.gold_file import import_gold
from router.registry import RETIRED, candidates
from tests.distiller.test_holdings import golden, sealed
from tests.logs import migrated
from tests.proxy.test_freeing import holding
from tests.router.conftest import TASK, chat, known, ten_dollars
from tests.servers import eventually

CANARY = "~canary"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    return log


def home(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(home=str(tmp_path), **changes)


def line(user: str, text: str, ts: float | None = None) -> tuple[str, bytes]:
    """One record as a worker spools it; the user's id, and the exchange's."""
    body = json.dumps({"model": "gpt-4o", "messages": chat(text), "user": user}).encode()
    answer = {"choices": [{"message": {"content": f"answer to {text}"}, "finish_reason": "stop"}], "usage": {
        "prompt_tokens": 10, "completion_tokens": 2}}  # fmt: skip
    one = Exchange(
        ulid(), ts or datetime.now(UTC).timestamp(), "POST", "/v1/chat/completions", task=TASK, request=body,
        status=200, response=json.dumps(answer).encode(),
    )  # fmt: skip
    return one.id, one.line(Redactor(SECRETS_ONLY))


def spooled(tmp_path: Path, *lines: bytes) -> SpoolWriter:
    writer = SpoolWriter(tmp_path / "spool", 1 << 30, 3600)
    for one in lines:
        writer.append(one)
    writer.rotate()
    return writer


def test_a_user_is_gone_from_every_file_and_others_are_not(log: Log, tmp_path: Path) -> None:
    mine = [line("ann", f"{CANARY} {number}") for number in range(30)]
    others = [line("bob", f"stays {number}") for number in range(30)]
    spooled(tmp_path, *[one for pair in zip(mine, others, strict=True) for _, one in pair])
    Ingest(log, tmp_path / "spool", 7, ten_dollars).run()
    late = line("ann", f"{CANARY} in the spool")
    spooled(tmp_path, late[1])
    (tmp_path / "spool" / "quarantine").mkdir()
    (tmp_path / "spool" / "quarantine" / "x.ndjson").write_bytes(line("ann", CANARY)[1][:-300])
    bundle = sealed(tmp_path / "students", "one", [mine[0][0], others[0][0]], [mine[1][0]], [f"{CANARY} 1", "stays 1"])
    known(log, bundle.id, card=dict(bundle.manifest["card"]), bundle=str(bundle.path))
    both = "INSERT INTO verdicts (exchange, verdict, answer, yardstick_answer) VALUES ($1, 0.5, $2, $2)"
    log.query(both, [mine[2][0], CANARY])
    for exchange, text in ((mine[3][0], CANARY), (others[3][0], "stays"), (ulid(), "of one that is gone")):
        log.query("INSERT INTO rationales (exchange, text) VALUES (?, ?)", [exchange, text])
        log.query("INSERT INTO repeats (exchange, answer) VALUES (?, ?)", [exchange, text])
    back_up(tmp_path / "log" / "catalog.sqlite")
    (tmp_path / "log" / "damaged-1").mkdir()
    (tmp_path / "log" / "damaged-1" / "catalog.sqlite").write_text(CANARY)
    assert holding(tmp_path, CANARY)
    done = erase(home(tmp_path), "ann")
    assert holding(tmp_path, CANARY) == set()
    found = log.query("SELECT id FROM exchanges ORDER BY id")
    assert [row[0] for row in found] == sorted(identity for identity, _ in others)
    assert (done.exchanges, done.answers, done.charges, done.spooled) == (31, 1, 31, 32)
    assert (done.holdout, done.golden, done.files > 0) == (1, 1, True)
    names = {"erased": [identity for identity, _ in (*mine, late)], "others": [identity for identity, _ in others]}
    charges = (
        "SELECT count(*) FILTER (list_contains($erased, exchange) OR list_contains($erased, id)), "
        "count(*) FILTER (list_contains($others, exchange) AND id = exchange), count(DISTINCT exchange), sum(usd) "
        "FROM spend WHERE kind = 'teacher'"
    )
    ((linked, others_linked, known_by, usd),) = log.query(charges, names)
    assert (linked, others_linked, known_by, usd >= 600) == (0, 30, 61, True)
    assert log.query(
        "SELECT verdict, v.answer, v.yardstick_answer, s.usd FROM verdicts v "
        "JOIN spend s ON s.exchange = v.exchange AND s.id <> v.exchange"
    ) == [(0.5, None, None, 10.0)]
    assert log.query("SELECT task, exchanges FROM carried") == [(TASK, 31)]
    for kept in ("SELECT text FROM rationales ORDER BY text", "SELECT answer FROM repeats ORDER BY answer"):
        assert log.query(kept) == [("of one that is gone",), ("stays",)]
    (learned,) = done.learned
    assert (learned.student, learned.stage, learned.exchanges) == (bundle.id, "shadow", 1)
    assert learned.advice.startswith(f"stillroom rollback {TASK} ")
    assert (
        load_bundle(bundle.path).manifest["card"]["golden"] == candidates(log)[0].card["golden"] == [golden("stays 1")]
    )
    again = erase(home(tmp_path), "ann")
    assert (again.exchanges, again.spooled, [one.student for one in again.learned]) == (0, 0, [bundle.id])


def about(exchange: str, tenant: str, comment: str, status: int = 200) -> tuple[str, bytes]:
    """Feedback as a worker spools it; its id."""
    body = json.dumps({"exchange": exchange, "answer": "billing", "comment": comment}).encode()
    one = Exchange(
        ulid(), datetime.now(UTC).timestamp(), "POST", FEEDBACK, tenant=tenant, request=body, served_by=STILLROOM,
        status=status, response=respond("POST", ulid(), body, True)[1],
    )  # fmt: skip
    return one.id, one.line(Redactor(SECRETS_ONLY))


def test_imported_right_answers_to_an_erased_exchange_go_with_it(log: Log, tmp_path: Path) -> None:
    mine, more, others = line("ann", "mine"), line("ann", "more"), line("bob", "which queue?")
    spooled(tmp_path, mine[1], more[1], others[1])
    Ingest(log, tmp_path / "spool", 7, ten_dollars).run()
    told = [{"exchange": mine[0], "answer": CANARY}, {"request": chat("more"), "answer": f"{CANARY} too"}]
    file = tmp_path.parent / f"{tmp_path.name}.jsonl"  # The operator's own file is not ours to erase.
    file.write_text("\n".join(map(json.dumps, [*told, {"exchange": others[0], "answer": "stays"}])))
    assert import_gold(log, file, Redactor(SECRETS_ONLY)).new == 3
    assert holding(tmp_path, CANARY)
    assert erase(home(tmp_path), "ann").exchanges == 4
    assert holding(tmp_path, CANARY) == set()
    assert log.query("SELECT exchange, answer FROM feedback") == [(others[0], "stays")]


def test_feedback_about_an_erased_exchange_goes_with_it(log: Log, tmp_path: Path) -> None:
    mine, others = line("ann", CANARY), line("bob", "stays")
    good, bad = about(mine[0], "team", f"{CANARY} good"), about(mine[0], "team", f"{CANARY} bad", 400)
    stays = about(others[0], "team", f"about {mine[0]}, but of another, at {FEEDBACK}")
    spooled(tmp_path, mine[1], others[1], good[1], stays[1])
    spooled(tmp_path, bad[1])
    ingest = Ingest(log, tmp_path / "spool", 7, ten_dollars)
    ingest.run()
    (tmp_path / "spool" / "quarantine").mkdir()
    (tmp_path / "spool" / "quarantine" / "x.ndjson").write_bytes(good[1][:-9] + b"\n" + stays[1][:60])
    log.query("INSERT INTO verdicts (exchange, verdict, gold) VALUES (?, 1.0, ?)", [mine[0], good[0]])
    log.query("INSERT INTO verdicts (exchange, verdict, gold) VALUES (?, 0.5, ?)", [others[0], stays[0]])
    done = erase(home(tmp_path), "ann")
    assert (done.exchanges, done.spooled) == (3, 4)
    assert holding(tmp_path, CANARY) == set()
    assert log.query("SELECT id FROM exchanges ORDER BY id") == [(others[0],), (stays[0],)]
    ((unlinked, exchange),) = log.query("SELECT gold, exchange FROM verdicts WHERE verdict = 1.0")
    assert len(unlinked) == len(exchange) == 36
    assert log.query("SELECT gold, exchange FROM verdicts WHERE verdict = 0.5") == [(stays[0], others[0])]
    late = about(mine[0], "team", CANARY)
    spooled(tmp_path, late[1])
    ingest.run()
    (again,) = redo(home(tmp_path), datetime.now(UTC))
    assert (again.exchanges, again.spooled) == (1, 1)
    assert holding(tmp_path, CANARY) == set()


def test_nobody_is_found_and_nothing_changes(log: Log, tmp_path: Path) -> None:
    spooled(tmp_path, line("bob", "stays")[1])
    Ingest(log, tmp_path / "spool", 7, ten_dollars).run()
    done = erase(home(tmp_path, redaction=Redaction(emails=True)), "nobody@example.com")
    assert (done.exchanges, done.spooled, done.learned) == (0, 0, ())
    assert any("redaction replaces this id" in note for note in done.notes)
    assert log.query("SELECT count(*) FROM exchanges") == [(1,)]


def test_a_student_without_golden_prompts_is_served_no_more(log: Log, tmp_path: Path) -> None:
    identity, one = line("ann", "hers")
    spooled(tmp_path, one)
    Ingest(log, tmp_path / "spool", 7, ten_dollars).run()
    bundle = sealed(tmp_path / "students", "one", [], [identity], ["hers"])
    known(log, bundle.id, card=dict(bundle.manifest["card"]))
    assert erase(home(tmp_path), "ann").golden == 1
    (candidate,) = candidates(log)
    assert (candidate.stage, candidate.card["golden"]) == (RETIRED, [])


def test_an_exchange_under_way_and_a_student_made_meanwhile_are_found_later(log: Log, tmp_path: Path) -> None:
    began = datetime.now(UTC).timestamp()
    identity, learned = line("ann", CANARY)
    spooled(tmp_path, learned)
    erase(home(tmp_path), "ann")
    assert log.query("SELECT count(*) FROM exchanges") == [(0,)]
    now = datetime.now(UTC)
    assert redo(home(tmp_path), now) == []
    late, after = line("ann", CANARY, began), line("ann", "came back", now.timestamp() + 1)
    spooled(tmp_path, late[1], after[1])
    Ingest(log, tmp_path / "spool", 7, ten_dollars).run()
    bundle = sealed(tmp_path / "students", "one", [identity], [], [CANARY])
    (done,) = redo(home(tmp_path), now + timedelta(hours=1))
    assert (done.exchanges, done.spooled, done.golden, done.learned[0].student) == (1, 1, 1, bundle.id)
    assert holding(tmp_path, CANARY) == set()
    assert log.query("SELECT id FROM exchanges") == [(after[0],)]
    assert "ann" not in (tmp_path / "state" / "erasures.json").read_text()
    redo(home(tmp_path), now + timedelta(days=2))
    assert json.loads((tmp_path / "state" / "erasures.json").read_text()) == []


def test_a_segment_still_being_written_is_waited_for(log: Log, tmp_path: Path) -> None:
    writer = spooled(tmp_path)
    writer.append(line("ann", CANARY)[1])
    done: list[Any] = []
    erasing = threading.Thread(target=lambda: done.append(erase(home(tmp_path), "ann")))
    erasing.start()
    eventually((tmp_path / "state" / "erasures.json").exists)
    assert not done
    writer.rotate()
    erasing.join()
    assert done[0].exchanges == 1
    assert holding(tmp_path, CANARY) == set()


def test_what_the_controller_does_not_ingest_is_said(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spooled(tmp_path, line("ann", CANARY)[1])
    monkeypatch.setattr("distiller.erase._PATIENCE", 0.3)
    with only_one(tmp_path), pytest.raises(Unavailable, match="segments nobody ingests"):
        erase(home(tmp_path, spool=SpoolSettings(rotate_seconds=0.0)), "ann")


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(["ann", "bob", "Ann", "ann ", "né"]), min_size=1, max_size=30))
def test_nobody_elses_exchange_is_missing(tmp_path_factory: pytest.TempPathFactory, users: list[str]) -> None:
    tmp_path = tmp_path_factory.mktemp("home")
    log = migrated(tmp_path)
    lines = [(user, *line(user, f"{number}")) for number, user in enumerate(users)]
    spooled(tmp_path, *[one for _, _, one in lines])
    done = erase(home(tmp_path), "ann")
    wanted = sorted(identity for user, identity, _ in lines if user != "ann")
    assert [row[0] for row in log.query("SELECT id FROM exchanges ORDER BY id")] == wanted
    assert done.exchanges == users.count("ann")
    kept = [
        json.loads(text)["id"]
        for path in (tmp_path / "spool").rglob("*.ndjson")
        for text in path.read_text().splitlines()
    ]
    assert sorted(kept) == wanted
