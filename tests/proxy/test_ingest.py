import gzip
import json
from pathlib import Path

import pytest

from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log, open_log
from proxy.migrations import migrate
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.settings import LogSettings
from proxy.spool import SpoolWriter

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
    log = open_log(LogSettings(), tmp_path)
    migrate(log)
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


def test_poison_is_set_aside_with_its_reason_and_the_rest_enters(log: Log, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spooled(spool, exchange(), exchange())
    (segment,) = spool.glob("*.ndjson")
    lines = segment.read_bytes().split(b"\n")
    segment.write_bytes(lines[0] + b"\n{broken\n" + lines[1] + b"\n")
    assert Ingest(log, spool, 7, ten_dollars).run() == 2
    (poison,) = spool.glob("*.poison")
    assert json.loads(poison.read_text())["line"] == "{broken"


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
