import base64
import gzip
import json
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import ingest
from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.logprobs import Position, packed, unpacked
from proxy.patterns import SECRETS_ONLY
from proxy.quarantine import quarantined
from proxy.redact import Redactor
from proxy.spool import SpoolWriter
from tests.logs import migrated
from tests.servers import eventually

BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi\u2028there"}]}).encode()
ANSWER = json.dumps(
    {
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    }
).encode()


def exchange(**fields: object) -> Exchange:
    given = {"request": BODY, "response": ANSWER, "status": 200, "path": "/v1/chat/completions"} | fields
    return Exchange(id=ulid(), ts=1_800_000_000.0, method="POST", **given)  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    return log


def ten_dollars(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
    return 10.0 if model == "gpt-4o" and (prompt, cached, completion) == (10, 4, 2) else None


def spooled(folder: Path, *exchanges: Exchange) -> SpoolWriter:
    writer = SpoolWriter(folder, 1 << 30, 3600)
    for one in exchanges:
        writer.append(one.line(Redactor(SECRETS_ONLY)))
    writer.rotate()
    return writer


def test_rows_columns_and_charge_arrive_together(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange(), exchange(path="/v1/models", request=b"", response=b"{}"))
    assert Ingest(log, spool, 7, ten_dollars).run() == 2
    rows = log.query(
        "SELECT model, answer, finish_reason, prompt_tokens, cached_tokens, completion_tokens, task, partial "
        "FROM exchanges WHERE path = '/v1/chat/completions'"
    )
    assert rows == [("gpt-4o", "hello", "stop", 10, 4, 2, "untitled", False)]
    assert log.query("SELECT usd, model, kind FROM spend") == [(10.0, "gpt-4o", "teacher")]
    assert log.query("SELECT request FROM exchanges WHERE model IS NOT NULL") == [(BODY.decode(),)]


def test_who_answered_stands_beside_who_was_asked_and_the_teacher_and_language_of_a_row(
    log: Log, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange(task="a", teacher="german", lang="de"), exchange(task="b", status=500))
    assert Ingest(log, spool, 7, ten_dollars).run() == 2
    assert log.query("SELECT task, model, answered_model, teacher, lang FROM exchanges ORDER BY task") == [
        ("a", "gpt-4o", "gpt-4o-2024-08-06", "german", "de"),
        ("b", "gpt-4o", None, None, None),
    ]


def test_log_probabilities_arrive_as_bytes_of_whole_answers_only(log: Log, tmp_path: Path) -> None:
    spool, told = tmp_path / "spool", (Position(b"\xff", -0.5, ((b"\xff", -0.5), (b"", -2.0))),)
    cut_off = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    whole = cut_off + b"data: [DONE]\n\n"
    spooled(
        spool,
        exchange(task="plain", logprobs=told),
        exchange(task="stream", stream=True, response=whole, logprobs=told),
        exchange(task="no DONE", stream=True, response=cut_off, logprobs=told),
        exchange(task="partial", partial=True, logprobs=told),
        exchange(task="not asked"),
    )
    assert Ingest(log, spool, 7, ten_dollars).run() == 5
    found = dict(log.query("SELECT task, logprobs FROM exchanges"))
    assert {task: kept for task, kept in found.items() if kept} == {"plain": packed(told), "stream": packed(told)}
    assert unpacked(found["plain"]) == told


def test_log_probabilities_that_are_none_are_no_record(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    good = exchange(task="good").line(Redactor(SECRETS_ONLY))
    spool.mkdir()
    segment = spool / f"{ulid()}.ndjson"
    segment.write_bytes(good + good.replace(b"}\n", b',"logprobs":"no base64!"}\n'))
    assert Ingest(log, spool, 7, ten_dollars).run() == 1
    assert log.query("SELECT task, logprobs FROM exchanges") == [("good", None)]
    assert quarantined(spool) == 1


def test_the_disk_is_not_searched_for_pandas_with_each_record(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    class Finder(MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            searched.append(fullname)

    spooled(tmp_path / "spool", *[exchange() for _ in range(50)])
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert Ingest(log, tmp_path / "spool", 7, ten_dollars).run() == 50
    assert searched.count("pandas") <= 1  # Where it is installed it is found, and then known.


def test_a_segment_enters_once_though_the_move_failed(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange(), exchange())
    ingest = Ingest(log, spool, 7, ten_dollars)
    assert ingest.run() == 2
    (done,) = (spool / "ingested").iterdir()
    done.rename(spool / done.name)  # As if the process had died between commit and move.
    assert ingest.run() == 0
    assert ingest.ingested == 2
    assert log.query("SELECT count(*), count(DISTINCT id) FROM exchanges") == [(2, 2)]


def test_poison_is_set_aside_with_its_reason_and_the_rest_enters(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange())
    spooled(spool, exchange(), exchange())
    segment = sorted(spool.glob("*.ndjson"))[1]
    lines = segment.read_bytes().split(b"\n")
    original = lines[0] + b"\n{broken sk-secret\n" + lines[1] + b"\n"
    segment.write_bytes(original)
    assert Ingest(log, spool, 7, ten_dollars).run() == 3
    (entry,) = map(json.loads, (spool / "quarantine" / segment.name).read_text().splitlines())
    assert "Malformed JSON" in entry.pop("reason")
    assert entry == {"segment": segment.name, "line": 2, "encoding": "utf-8", "raw": "{broken sk-secret"}
    assert (spool / "ingested" / segment.name).read_bytes() == original
    assert list((spool / "sifted").iterdir()) == []
    assert "1 lines are no records and are now in quarantine" in caplog.text
    assert "sk-secret" not in caplog.text
    assert quarantined(spool) == 1


def test_compressed_answers_are_read(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange(response=gzip.compress(ANSWER), response_headers=[(b"content-encoding", b"gzip")]))
    Ingest(log, spool, 7, ten_dollars).run()
    assert log.query("SELECT answer, completion_tokens FROM exchanges") == [("hello", 2)]


def test_what_cannot_be_read_is_kept_raw(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(
        spool, exchange(request=b"{nope", response=b'{"choices": 5}'), exchange(request=b"\xff\x00", response=b"\xfe")
    )
    assert Ingest(log, spool, 7, ten_dollars).run() == 2
    rows = log.query("SELECT request, request_encoding, answer FROM exchanges ORDER BY request_bytes DESC")
    assert rows == [("{nope", "utf-8", None), ("/wA=", "base64", None)]
    assert log.query("SELECT count(*) FROM spend WHERE usd IS NULL") == [(2,)]


def test_old_ingested_segments_are_forgotten(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange())
    ingest = Ingest(log, spool, 0, ten_dollars)
    ingest.run()
    ingest.run()
    assert list((spool / "ingested").iterdir()) == []
    assert log.query("SELECT count(*) FROM exchanges") == [(1,)]


RECORD = exchange().line(Redactor(SECRETS_ONLY)).rstrip(b"\n")


def spoiled(key: str, value: object) -> bytes:
    return json.dumps(json.loads(RECORD) | {"id": "spoiled", key: value}).encode()


NO_RECORDS = [
    b"{broken", b"null", b"{}", b"[]", b"7", b'"id"', b"\xff\xfe", b"\0" * 50, RECORD[:-1], RECORD + b"x",
    b"\xef\xbb\xbf" + RECORD, RECORD + RECORD, RECORD.replace(b'"hi', b'"\xff'), spoiled("id", None),
    spoiled("id", ""), spoiled("ts", "infinity"), spoiled("ts", "yesterday"), spoiled("status", "fine"),
    spoiled("status", 2**40), spoiled("stream", "perhaps"), spoiled("request", None), spoiled("latency_ms", [1]),
    spoiled("request_headers", None), spoiled("request_bytes", {}),
]  # fmt: skip


def test_what_is_no_record_is_set_aside_line_by_line(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange())
    (segment,) = spool.glob("*.ndjson")
    segment.write_bytes(b"\n".join([*NO_RECORDS, segment.read_bytes()]))
    assert Ingest(log, spool, 7, ten_dollars).run() == 1
    assert kept_aside(spool) == list(enumerate(NO_RECORDS, 1))


def kept_aside(spool: Path, segment: str = "*") -> list[tuple[int, bytes]]:
    found = []
    for file in sorted((spool / "quarantine").glob(segment)):
        for entry in map(json.loads, file.read_text().splitlines()):
            raw = entry["raw"].encode() if entry["encoding"] == "utf-8" else base64.b64decode(entry["raw"])
            found.append((entry["line"], raw))
    return found


def test_every_record_enters_once_and_everything_else_is_in_quarantine(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    ingest = Ingest(log, spool, 7, ten_dollars)
    spool.mkdir()

    @settings(max_examples=25, deadline=None)
    @given(
        lines=st.lists(st.sampled_from(["record", *NO_RECORDS]) | st.binary(max_size=30) | st.just(b" \t"), max_size=8),
        torn=st.integers(0, 40),
    )
    def run(lines: list[str | bytes], torn: int) -> None:
        made = [exchange() for line in lines if line == "record"]
        records = iter(lines_of(made))
        data = b"\n".join([*(next(records) if isinstance(line, str) else line for line in lines), RECORD[:torn]])
        segment = spool / f"{ulid()}.ndjson"
        segment.write_bytes(data)
        assert ingest.run() == len(made)
        rows = log.query("SELECT id FROM exchanges WHERE segment = ?", [segment.name])
        assert sorted(id for (id,) in rows) == [one.id for one in made]
        expected = [line for line in data.split(b"\n") if line.strip(b" \t\r") and line not in lines_of(made)]
        assert [line for _, line in kept_aside(spool, segment.name)] == expected
        assert (spool / "ingested" / segment.name).read_bytes() == data

    run()


def lines_of(made: list[Exchange]) -> list[bytes]:
    return [one.line(Redactor(SECRETS_ONLY)).rstrip(b"\n") for one in made]


def test_a_line_whose_derivation_fails_takes_no_other_with_it(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derive = ingest.derive

    def failing(path: str, *rest: Any) -> Any:
        if path == "/v1/defect":
            raise AttributeError("a defect of ours")
        return derive(path, *rest)

    monkeypatch.setattr(ingest, "derive", failing)
    spool = tmp_path / "spool"
    spooled(spool, exchange(), exchange(path="/v1/defect"), exchange())
    assert Ingest(log, spool, 7, ten_dollars).run() == 2
    (file,) = (spool / "quarantine").iterdir()
    assert "a defect of ours" in json.loads(file.read_text())["reason"]


def test_a_segment_that_cannot_be_read_waits_and_holds_up_no_other(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading another process's memory at 0 is an I/O error, as from a bad disk."""
    spool = tmp_path / "spool"
    spool.mkdir()
    bad = spool / f"{ulid()}.ndjson"
    bad.symlink_to("/proc/self/mem")
    spooled(spool, exchange())
    ingest = Ingest(log, spool, 7, ten_dollars)
    assert ingest.run() == 1
    spooled(spool, exchange(), exchange())
    assert ingest.run() == 2
    assert caplog.text.count("waits, it is tried again in 1 s: Input/output error") == 1
    bad.unlink()
    bad.write_bytes(exchange().line(Redactor(SECRETS_ONLY)))
    assert eventually(ingest.run) == 1


def test_a_failing_log_is_said_and_no_segment_blamed(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange())
    log.query("ALTER TABLE exchanges RENAME TO elsewhere")
    ingest = Ingest(log, spool, 7, ten_dollars)
    with pytest.raises(duckdb.CatalogException):
        ingest.run()
    log.query("ALTER TABLE elsewhere RENAME TO exchanges")
    assert ingest.run() == 1
    assert quarantined(spool) == 0


def test_below_the_mark_segments_wait(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange())
    free = [0]
    short = Ingest(log, spool, 7, ten_dollars, min_free=800)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 10_000, free[0], free[0], 1, 1, 1, 0, 255)))
        assert short.run() == short.run() == 0
        assert caplog.text.count("segments wait") == 1
        free[0] = 10_000
        assert eventually(short.run) == 1
    assert caplog.text.count("segments enter again") == 1


def test_a_record_of_an_older_stillroom_enters(log: Log, tmp_path: Path) -> None:
    """Retained segments have no columns that came later."""
    spool = tmp_path / "spool"
    spool.mkdir()
    old = json.loads(RECORD)
    del old["fallback"], old["confidence"], old["teacher"], old["lang"]
    (spool / f"{ulid()}.ndjson").write_text(json.dumps(old))
    assert Ingest(log, spool, 7, ten_dollars).run() == 1
    assert log.query("SELECT teacher, lang FROM exchanges") == [(None, None)]


def test_others_files_in_the_folders_are_left_alone(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    (spool / "ingested" / "folder").mkdir(parents=True)
    for name in ("notes.ndjson", "ingested/notes.ndjson", "ingested/folder/x"):
        (spool / name).write_text("mine")
    assert Ingest(log, spool, -1, ten_dollars).run() == 0
    assert len([path for path in spool.rglob("*") if path.is_file()]) == 3


def test_tenants_arrive_and_older_segments_have_none(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    writer = SpoolWriter(spool, 1 << 30, 3600)
    older = json.loads(exchange().line(Redactor(SECRETS_ONLY)))
    older.pop("tenant", None)
    for record in (older, older | {"id": "z", "tenant": "team"}):
        writer.append(json.dumps(record).encode() + b"\n")
        writer.rotate()
    Ingest(log, spool, 7, ten_dollars).run()
    assert log.query("SELECT tenant FROM exchanges ORDER BY id") == [(None,), ("team",)]
