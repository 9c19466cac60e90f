import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.settings import load_settings
from proxy.deciding import Asked
from proxy.ids import ulid
from proxy.log import Log
from router.decide import Router
from router.evaluators import JUDGE
from router.ledger import charge
from router.lifecycle import advance, promote, publish
from router.policy import PolicyWatcher, load_policy
from router.registry import CANARY, candidates, move
from router.settings import RouterSettings
from stillroom import main
from tests.logs import migrated
from tests.router.conftest import PATH, TASK, chat, insert, judged, known
from tests.router.test_certificate import compared


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "stillroom.toml"
    file.write_text('home = "home"')
    return file


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path / "home")


def run(config: Path, *words: str) -> int:
    return main([words[0], "--config", str(config), *words[1:]])


def test_without_a_certificate_it_says_what_is_missing(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(log, known(log), [1.0] * 10)
    assert run(config, "certificate", TASK) == 1
    assert "student-1 has no certificate: not yet" in capsys.readouterr().err
    assert run(config, "promote", TASK) == 1
    assert "no promotion without a certificate" in capsys.readouterr().err


def test_a_certified_candidate_is_shown_promoted_and_rolled_back(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    advance(log, candidate, RouterSettings(canary_shares=(0.3,)))
    assert run(config, "certificate", TASK) == 0
    assert json.loads(capsys.readouterr().out)["candidate"] == candidate.id
    assert run(config, "promote", TASK, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"candidate": candidate.id, "stage": "live", "share": 1.0}
    assert run(config, "rollback", TASK, "--reason", "wrong on refunds") == 0
    assert capsys.readouterr().out == f"the teacher answers {TASK}; retired: {candidate.id}\n"
    assert run(config, "rollback", TASK, "--reason", "again") == 0
    assert capsys.readouterr().out == f"the teacher answered {TASK} already\n"
    assert load_policy(config.parent / "home" / "state" / "policy.json").routes == {}


def test_right_answers_are_imported_and_what_matched_nothing_is_named(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    (exchange,) = insert(log, ["one"])
    file = config.parent / "answers.jsonl"
    lines = {exchange: "mail x@example.org, key sk-proj-" + "a1B2" * 10, ulid(): "b"}
    file.write_text("\n".join(json.dumps({"exchange": one, "answer": answer}) for one, answer in lines.items()))
    assert run(config, "gold", str(file)) == 0
    assert capsys.readouterr().out == (
        "2 lines: right answers to 1 exchange in the log, 1 of them new\n1 line matches none: 2\n"
    )
    assert run(config, "gold", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"lines": 2, "exchanges": 1, "new": 0, "unmatched": [2]}
    assert log.query("SELECT answer FROM feedback") == [("mail x@example.org, key [SECRET_1]",)]
    config.write_text('home = "home"\n[redaction]\nemails = true')
    assert run(config, "gold", str(file)) == 0
    assert log.query("SELECT answer FROM feedback") == [("mail [EMAIL_1], key [SECRET_1]",)]
    file.write_text("{}")
    assert run(config, "gold", str(file)) == 1
    assert "answers.jsonl, line 1: write" in capsys.readouterr().err


def test_the_stages_are_shown(config: Path, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    judged(log, known(log), [1.0] * 3)
    assert run(config, "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["engine"]["state"] == "not started"
    assert (shown["feedback_ignored"], shown["candidates"][0]["feedback"]["scored"]) == (0, 0)
    assert [(line["candidate"], line["stage"]) for line in shown["candidates"]] == [("student-1", "shadow")]
    assert shown["similarity"] == {}


def test_where_a_judge_decides_it_is_shown_how_alike_the_answers_look(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    (exchange,) = insert(log, ["x"], answer="Refund it.")
    judged(log, known(log, evaluator=JUDGE), [1.0], exchange=exchange, answer="Ship.")
    assert run(config, "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["similarity"] == {"student-1": {"judged": 1, "good": 0.0, "worse": None}}
    assert run(config, "status") == 0
    assert "how alike the two answers look" in capsys.readouterr().out


def test_rivals_are_shown_and_the_cheapest_that_passes_is_named(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(config, "rivals", "nothing") == 1
    assert "task 'nothing' has no candidate" in capsys.readouterr().err
    for name in ("cheap", "dear"):
        card = {"rival": name, "model": f"{name}-model", "url": "http://127.0.0.1:9/v1"}
        known(log, name, kind="hosted", threshold=None, card=card | {"labels": [], "static": [], "max_tokens": None})
    assert run(config, "rivals", TASK) == 0
    assert "none passes yet" in capsys.readouterr().out
    for candidate in candidates(log):
        judged(log, candidate, [1.0] * 200)
    charge(log, "shadow", 0.002, 1.0, "exchange", TASK, "cheap")
    assert run(config, "rivals", TASK) == 0
    shown = capsys.readouterr().out
    assert "the cheapest that passes: cheap" in shown
    assert "$2.0000" in shown
    assert "unpriced" in shown
    assert run(config, "rivals", TASK, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cheapest"] == "cheap"
    lines = [(one["model"], one["stage"], one["passes"], one["usd_per_1000"]) for one in found["candidates"]]
    assert lines == [("cheap-model", "shadow", True, 2.0), ("dear-model", "shadow", True, None)]
    assert run(config, "promote", TASK) == 1
    assert "cheap passes too" in capsys.readouterr().err
    assert run(config, "promote", TASK, "--candidate", "cheap") == 0
    assert "cheap is now: canary" in capsys.readouterr().out
    assert load_policy(config.parent / "home" / "state" / "policy.json").routes[TASK].model == "cheap-model"
    file, page = config.parent / "proof.json", config.parent / "proof.html"
    assert run(config, "certificate", TASK, "--candidate", "cheap", "--output", str(file), "--html", str(page)) == 0
    assert json.loads(file.read_text())["hosted"] == {"model": "cheap-model", "url": "http://127.0.0.1:9/v1"}
    assert "cheap-model at http://127.0.0.1:9/v1" in page.read_text()


def test_a_task_is_frozen_shown_and_thawed(config: Path, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    known(log)
    assert run(config, "freeze", TASK, "--reason", "audit week") == 0
    assert capsys.readouterr().out == f"{TASK} is frozen: it can still be taken back\n"
    assert run(config, "promote", TASK) == 1
    assert "is frozen (audit week)" in capsys.readouterr().err
    assert run(config, "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["frozen"][TASK]["reason"] == "audit week"
    assert "frozen since" in shown["candidates"][0]["next"]
    assert run(config, "freeze", TASK, "--off", "--reason", "over", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"task": TASK, "frozen": False}
    assert run(config, "freeze", TASK, "--off", "--reason", "over") == 1
    assert "is not frozen" in capsys.readouterr().err


async def test_a_rollback_reaches_every_worker_within_two_seconds(config: Path, log: Log) -> None:
    judged(log, known(log), [1.0] * 200)
    settings = load_settings(config)
    router = replace(settings.router, canary_shares=(1.0,), holdback_share=0.0)
    promote(log, TASK, router)
    publish(log, router, {"student-1": "http://127.0.0.1:9"}, settings.policy)
    workers = [Router(PolicyWatcher(settings.policy)) for _ in range(3)]
    asked = Asked(PATH, json.dumps({"model": "gpt-4o", "messages": chat("mine?")}).encode(), TASK)
    async with AsyncExitStack() as running:
        for worker in workers:
            await running.enter_async_context(worker.running())
        assert {worker.decide(asked).served_by for worker in workers} == {"student-1"}
        assert await asyncio.to_thread(run, config, "rollback", TASK, "--reason", "wrong") == 0
        async with asyncio.timeout(2):
            while any(worker.decide(asked).answer for worker in workers):
                await asyncio.sleep(0.01)


@pytest.fixture
def certified(config: Path, log: Log) -> Path:
    """Promoted by an operator; the file to write its certificate to."""
    candidate = known(log)
    compared(log, candidate, [1.0] * 250 + [0.0] + [1.0] * 50)
    assert run(config, "promote", TASK) == 0
    return config.parent / "out" / "certificate.json"


def test_a_certificate_is_written_and_verified(
    config: Path, certified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = certified.with_suffix(".html")
    assert run(config, "certificate", TASK, "--output", str(certified), "--html", str(html)) == 0
    assert "<svg" in html.read_text()
    assert "where is order 250" in html.read_text()
    assert json.loads(certified.read_text())["examples"]["quoted"][0]["input"] == "where is order 250"
    assert (config.parent / "home" / "certificate.key").stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert run(config, "verify", str(certified)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the certificate holds"
    assert run(config, "verify", str(certified), "--json") == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True


def test_a_certificate_without_examples_quotes_nothing_and_verifies_too(config: Path, certified: Path) -> None:
    assert run(config, "certificate", TASK, "--output", str(certified), "--without-examples") == 0
    assert "where is order" not in certified.read_text()
    assert run(config, "verify", str(certified)) == 0


def test_a_certificate_changed_in_the_log_is_not_signed_again(config: Path, certified: Path, log: Log) -> None:
    log.query("UPDATE transitions SET certificate = replace(certificate, '0.05', '0.01')")
    assert run(config, "certificate", TASK, "--output", str(certified)) == 0
    assert "examples" not in json.loads(certified.read_text())
    assert run(config, "verify", str(certified)) == 1


def test_a_place_that_cannot_be_written_is_said(
    config: Path, certified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certified.mkdir(parents=True)
    assert run(config, "certificate", TASK, "--output", str(certified)) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_certificate_that_was_changed_or_holds_no_more_is_said(
    config: Path, certified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "certificate", TASK, "--output", str(certified)) == 0
    assert run(config, "rollback", TASK, "--reason", "wrong on refunds") == 0
    capsys.readouterr()
    assert run(config, "verify", str(certified)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "the certificate does not hold: stage: retired: rolled back: wrong on refunds"
    certified.write_text(certified.read_text().replace("0.05", "0.01"))
    assert run(config, "verify", str(certified)) == 1
    assert "signature: broken" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b"<html>"])
def test_a_file_that_is_no_certificate_is_said(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    file = config.parent / "file"
    if content is not None:
        file.write_bytes(content)
    assert run(config, "verify", str(file)) == 1
    assert capsys.readouterr().err.startswith("stillroom: ")


def test_an_older_certificate_is_shown_as_it_is(config: Path, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    move(log, known(log), CANARY, "before certificates were signed", {"task": TASK, "parity": {"n": 90}})
    assert run(config, "certificate", TASK) == 0
    assert json.loads(capsys.readouterr().out) == {"task": TASK, "parity": {"n": 90}}


def test_an_erased_user_leaves_a_certificate_that_says_what_cannot_be_told(
    config: Path, certified: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "certificate", TASK, "--output", str(certified)) == 0
    log.close()
    assert run(config, "erase", "--user", "ann@example.com", "--yes") == 0
    capsys.readouterr()
    assert run(config, "verify", str(certified)) == 0
    shown = capsys.readouterr().out
    assert "?   slices: 301 exchanges are gone" in shown
    assert "?   examples: 1 of 1 are gone" in shown
    assert "yes parity: as computed again" in shown
    assert run(config, "certificate", TASK) == 0
    assert "where is order" not in capsys.readouterr().out


def test_status_tells_what_ends_and_how_golden_sets_stand(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(
        'home = "home"\n[[teacher.sunsets]]\nmodel = "gpt-4o"\nshutdown = 2020-01-01\nsuccessor = "gpt-5"\n'
        '[[teacher.sunsets]]\nmodel = "gpt-5-mini"\nshutdown = 2999-01-01\n'
    )
    candidate = known(log)
    judged(log, candidate, [1.0], exchange=insert(log, ["a"])[0])
    assert run(config, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["golden"] == {}  # Not promoted: nothing is asked again yet.
    move(log, candidate, CANARY, "proved", share=0.1)
    assert run(config, "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["golden"] == {candidate.id: {"exchanges": 1, "verdicts": 0, "mean": None}}
    ended, coming = shown["sunsets"]
    assert ended.startswith("gpt-4o has ended, on 2020-01-01: golden sets")
    assert coming.startswith("gpt-5-mini shuts down in ")


def test_a_day_that_is_no_date_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text('[[teacher.sunsets]]\nmodel = "gpt-4o"\nshutdown = "2027-03-31"')
    assert run(config, "status") == 1
    assert "setting 'teacher.sunsets[0].shutdown' must be of type date, not str" in capsys.readouterr().err
