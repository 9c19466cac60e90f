import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from proxy.ids import ulid
from proxy.log import Log
from proxy.tracing import Tracing, span_ids
from tests.logs import migrated
from tests.servers import eventually, free_port

TEACHER = "https://api.example.com:8443/openai"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0{sampled}"
PROMPT, ANSWER = "a prompt nobody may see", "an answer nobody may see"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP as a collector does, or refuses it."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.spans: list[Any] = []
        self.raw = b""
        self.asked, self.status = 0, 200
        self.resource: dict[str, Any] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.asked += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        if self.server.status == 200:
            self.server.raw += body
            for found in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.resource = plain(found.resource.attributes)
                self.server.spans += [span for scope in found.scope_spans for span in scope.spans]
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def plain(attributes: Any) -> dict[str, Any]:
    def value(found: Any) -> Any:
        kind = found.WhichOneof("value")
        return [value(item) for item in found.array_value.values] if kind == "array_value" else getattr(found, kind)

    return {item.key: value(item.value) for item in attributes}


@contextlib.contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    with Collector(port) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "stillroom-test")
        yield server


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def ingested(log: Log, count: int = 1, cost: float | None = None, **columns: Any) -> list[str]:
    """A segment with exchanges, as ingest leaves it."""
    segment, ids = f"{ulid()}.ndjson", [ulid() for _ in range(count)]
    for identifier in ids:
        row = {
            "id": identifier, "ts": datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC), "task": "triage-1f",
            "model": "gpt-4o", "path": "/v1/chat/completions", "served_by": "teacher", "status": 200,
            "partial": False, "stream": False, "latency_ms": 1500.5, "first_byte_ms": 400.0, "segment": segment,
            "finish_reason": "stop", "prompt_tokens": 12, "cached_tokens": 4, "completion_tokens": 3, "answer": ANSWER,
            "request": json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}]}),
            "response": json.dumps({"id": "x", "model": "gpt-4o-2024-08-06", "choices": [{"message": ANSWER}]}),
            "request_headers": json.dumps([["Content-Type", "application/json"]]),
        } | columns  # fmt: skip
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        log.query(f"INSERT INTO exchanges ({names}) VALUES ({marks})", list(row.values()))
        if cost is not None:
            log.query("INSERT INTO spend (exchange, kind, usd) VALUES (?, 'teacher', ?)", [identifier, cost])
    log.query("INSERT INTO segments VALUES (?, ?, now())", [segment, count])
    return ids


async def tracing(log: Log, home: Path) -> Tracing:
    """One that has begun: only what comes now is new to it."""
    made = Tracing(log, home / "state" / "spans", TEACHER)
    assert not await made.step()
    return made


async def test_a_span_says_what_the_conventions_ask_for(log: Log, tmp_path: Path, collector: Collector) -> None:
    made = await tracing(log, tmp_path)
    (exchange,) = ingested(log, cost=0.0125, stream=True)
    assert await made.step()
    assert not await made.step()
    (span,) = collector.spans
    assert plain(span.attributes) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06", "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.4, "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 4, "gen_ai.usage.output_tokens": 3,
        "server.address": "api.example.com", "server.port": 8443, "http.response.status_code": 200,
        "stillroom.exchange": exchange, "stillroom.task": "triage-1f", "stillroom.served_by": "teacher",
        "stillroom.cost_usd": 0.0125,
    }  # fmt: skip
    assert (span.name, span.kind, span.status.code) == ("chat gpt-4o", 3, 0)
    assert span.start_time_unix_nano == int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 10**9 + 250_000_000
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_500_500_000
    assert (int.from_bytes(span.trace_id), int.from_bytes(span.span_id)) == span_ids(exchange)
    assert span.parent_span_id == b""
    assert collector.resource["service.name"] == "stillroom-test"
    assert PROMPT.encode() not in collector.raw
    assert ANSWER.encode() not in collector.raw


async def test_a_named_teacher_is_named_with_its_server_as_far_as_that_is_known(
    log: Log, tmp_path: Path, collector: Collector
) -> None:
    made = Tracing(log, tmp_path / "state" / "spans", TEACHER, {"german": "http://g.example.com"})
    assert not await made.step()
    for name in ("german", "gone"):
        ingested(log, teacher=name, lang="de")
    assert await made.step()
    found = [plain(span.attributes) for span in collector.spans]
    told = ("stillroom.teacher", "stillroom.lang", "server.address", "server.port")
    assert [tuple(one.get(name) for name in told) for one in found] == [
        ("german", "de", "g.example.com", 80), ("gone", "de", None, None),
    ]  # fmt: skip


async def test_what_is_not_known_is_not_told(log: Log, tmp_path: Path, collector: Collector) -> None:
    made = await tracing(log, tmp_path)
    empty = dict.fromkeys(["finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "task", "model"])
    ingested(log, served_by="c-1", response="{}", request_headers=None, **empty)
    assert await made.step()
    (span,) = collector.spans
    assert span.name == "chat"
    assert sorted(plain(span.attributes)) == [
        "gen_ai.operation.name", "gen_ai.provider.name", "http.response.status_code", "stillroom.exchange",
        "stillroom.served_by",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"status": 429}, "429"),
        ({"status": 502, "error": "upstream: TimeoutError"}, "upstream: TimeoutError"),
        ({"partial": True, "error": "client hung up"}, "client hung up"),
        ({"partial": True}, "incomplete"),
        ({"status": 0}, "0"),
    ],
)
async def test_an_error_is_one(
    log: Log, tmp_path: Path, collector: Collector, columns: dict[str, Any], error: str
) -> None:
    made = await tracing(log, tmp_path)
    ingested(log, **columns)
    await made.step()
    (span,) = collector.spans
    assert plain(span.attributes)["error.type"] == error
    assert span.status.code == 2


@pytest.mark.parametrize(
    ("path", "operation"),
    [("/v1/completions", "text_completion"), ("/v1/embeddings", "embeddings"), ("/v1/responses/", "chat")],
)
async def test_operations(log: Log, tmp_path: Path, collector: Collector, path: str, operation: str) -> None:
    made = await tracing(log, tmp_path)
    ingested(log, path=path)
    ingested(log, path="/v1/models")
    assert await made.step()
    assert [span.name for span in collector.spans] == [f"{operation} gpt-4o"]


async def test_it_belongs_to_the_clients_trace_if_that_is_sampled(
    log: Log, tmp_path: Path, collector: Collector
) -> None:
    made = await tracing(log, tmp_path)
    for parent in (PARENT.format(sampled=1), PARENT.format(sampled=0), "00-nonsense"):
        ingested(log, request_headers=json.dumps([["Traceparent", parent]]))
    await made.step()
    theirs, ours = collector.spans
    assert (theirs.trace_id.hex(), theirs.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert ours.parent_span_id == b""


async def test_each_once_over_restarts_and_never_the_past(
    log: Log, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tracing.TOGETHER", 2)
    monkeypatch.setattr("proxy.tracing.BATCH", 3)
    ingested(log)
    await tracing(log, tmp_path)
    ids: list[str] = []
    for _ in range(2):
        for _ in range(3):
            ids += ingested(log, 2)
        made = Tracing(log, tmp_path / "state" / "spans", TEACHER)
        while await made.step():
            pass
    assert [plain(span.attributes)["stillroom.exchange"] for span in collector.spans] == ids


async def test_what_a_collector_did_not_take_it_is_given_again(
    log: Log, tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    made = await tracing(log, tmp_path)
    (exchange,) = ingested(log)
    collector.status = 400
    assert not await made.step()
    assert not await made.step()
    collector.status = 200
    assert await made.step()
    assert [plain(span.attributes)["stillroom.exchange"] for span in collector.spans] == [exchange]
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "spans cannot be exported", "spans are exported again"
    ]  # fmt: skip


async def test_a_log_built_anew_starts_over(log: Log, tmp_path: Path, collector: Collector) -> None:
    made = await tracing(log, tmp_path)
    (tmp_path / "state" / "spans").write_text("1000000")
    assert not await made.step()
    ingested(log)
    (tmp_path / "state" / "spans").write_text("-1")
    assert await made.step()
    assert len(collector.spans) == 1


async def test_nobody_waits_for_a_collector_that_does_not_answer(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        made = await tracing(log, tmp_path)
        ingested(log)
        exporting = asyncio.create_task(made.step())
        connection, _ = await asyncio.to_thread(deaf.accept)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not exporting.done()
        assert log.query("SELECT count(*) FROM exchanges") == [(1,)]
        exporting.cancel()
        made.close()
        connection.close()


async def test_a_collector_that_comes_late_gets_everything(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, stop = free_port(), asyncio.Event()
    monkeypatch.setattr("proxy.tracing.RETRY_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    made = await tracing(log, tmp_path)
    ids = ingested(log, 3)
    running = asyncio.create_task(made.run(stop))
    while not made.failing:
        await asyncio.sleep(0.01)
    with collecting(port) as server:
        await asyncio.to_thread(eventually, lambda: len(server.spans) == 3)
        assert [plain(span.attributes)["stillroom.exchange"] for span in server.spans] == ids
        stop.set()
        await running


async def test_switched_off_by_the_standard_variable(
    log: Log, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    made = await tracing(log, tmp_path)
    ingested(log)
    assert await made.step()
    assert collector.asked == 0
