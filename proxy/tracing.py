"""Owns spans: one OpenTelemetry span for each exchange with a model, made from the log after the fact.

Must not be on the way of a request, nor of the rounds: an exporter that is away is asked again later. A cursor over the
log's segments survives restarts; a segment whose export broke off is exported again as a whole. An exchange's ids are
always the same, so whoever receives a span twice can tell. No text of a prompt or an answer is in a span. Names are
those of the GenAI semantic conventions; where spans go is for the standard OTEL_* variables to say.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import duckdb
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.deciding import TEACHER
from proxy.derive import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from proxy.errors import StillroomError
from proxy.files import put
from proxy.log import Log
from proxy.waiting import pause

_log = logging.getLogger("stillroom.tracing")

LOOK_SECONDS = 1.0
RETRY_SECONDS = 30.0
TOGETHER = 8  # segments
BATCH = 512  # spans in one request, as the SDK's own processor has it
NO_OTHERS: Mapping[str, str] = MappingProxyType({})
_OPERATIONS = {
    CHAT: "chat", RESPONSES: "chat", MESSAGES: "chat", COMPLETIONS: "text_completion", EMBEDDINGS: "embeddings",
}  # fmt: skip

# A key cannot be quoted inside a JSON string, so the first one that reads so is the answer's own.
_ROWS = r"""
SELECT id, ts, coalesce(latency_ms, 0), rtrim(path, '/'), left(task, 256), left(model, 256),
       nullif(regexp_extract(left(response, 65536), '"model"\s*:\s*"([^"\\]{1,256})"', 1), ''),
       served_by, status, partial, left(error, 256), left(finish_reason, 256), stream, first_byte_ms,
       prompt_tokens, cached_tokens, completion_tokens, request_headers, teacher, lang
FROM exchanges
WHERE segment BETWEEN $first AND $last AND list_contains($names, segment)
  AND list_contains($paths, rtrim(path, '/'))
ORDER BY id
"""
_COSTS = "SELECT exchange, usd FROM spend WHERE kind = 'teacher' AND exchange BETWEEN ? AND ? AND usd IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Row:
    """What a span is made of: columns of the log, in the order of the query; `headers` as JSON."""

    id: str
    ts: datetime
    latency_ms: float
    path: str
    task: str | None
    asked_model: str | None
    answered_model: str | None
    served_by: str
    status: int
    partial: bool
    error: str | None
    finish_reason: str | None
    stream: bool
    first_byte_ms: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    headers: str | None
    teacher: str | None
    lang: str | None


class Tracing:
    """One per log, on the controller's loop. Export starts with what is new when it first runs."""

    def __init__(self, log: Log, cursor: Path, teacher: str, named: Mapping[str, str] = NO_OTHERS) -> None:
        """`cursor` is the file that remembers how far we are, `teacher` the URL that exchanges went to.

        `named` are the URLs of named teachers.
        """
        self._log, self._cursor, self._teacher, self._named = log, cursor, teacher, named
        self._made = _Maker()
        self.failing = False

    async def run(self, stop: asyncio.Event) -> None:
        """Export what the log gains, until `stop`."""
        going = asyncio.create_task(self._go(stop))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({going, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self.close()
        await going

    def close(self) -> None:
        """Wake the exporter where it waits between two tries; it is not asked again."""
        self._made.exporter.shutdown()  # type: ignore[no-untyped-call]

    async def _go(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                more = await self.step()
            except (StillroomError, duckdb.Error, OSError) as error:
                self._note(f"spans wait: {str(error).splitlines()[0]}")
                more = False
            await pause(stop, 0.0 if more else RETRY_SECONDS if self.failing else LOOK_SECONDS)

    async def step(self) -> bool:
        """Export the next few segments; True when there were any, and their spans arrived."""
        done = self._done()
        found = self._log.query(
            "SELECT rowid, name FROM segments WHERE rowid > ? ORDER BY rowid LIMIT ?", [done, TOGETHER]
        )
        if not found:
            return False
        rows, costs = self._rows([name for _, name in found])
        spans = [span for row in rows for span in self._made.spans(row, costs.get(row.id), self._url(row))]
        for start in range(0, len(spans), BATCH):
            if not await asyncio.to_thread(self._made.export, spans[start : start + BATCH]):
                self._note("spans cannot be exported, trying again: check OTEL_EXPORTER_OTLP_ENDPOINT")
                return False
        self._remember(found[-1][0])
        if self.failing:
            self.failing = False
            _log.warning("spans are exported again")
        return True

    def _rows(self, names: list[str]) -> tuple[list[Row], dict[str, float]]:
        rows = [Row(*row) for row in self._log.query(_ROWS, {
            "names": names, "first": min(names), "last": max(names), "paths": list(_OPERATIONS),
        })]  # fmt: skip
        return rows, dict(self._log.query(_COSTS, [rows[0].id, rows[-1].id]) if rows else ())

    def _url(self, row: Row) -> str:
        """Empty where it is not known any more."""
        return self._teacher if row.teacher is None else self._named.get(row.teacher, "")

    def _done(self) -> int:
        """The last segment whose spans arrived; at the very start the log's last: the past is not exported."""
        ((newest,),) = self._log.query("SELECT coalesce(max(rowid), -1) FROM segments")
        if self._cursor.exists():
            return min(int(self._cursor.read_text()), int(newest))  # A log that was built anew counts from zero.
        self._remember(newest)
        return int(newest)

    def _remember(self, done: int) -> None:
        put(self._cursor, str(done))

    def _note(self, trouble: str) -> None:
        if not self.failing:
            _log.error("%s", trouble)
        self.failing = True


def attributes(row: Row, cost: float | None, teacher: str) -> dict[str, Any]:
    """Of an exchange's span; what is not known is not there."""
    by_teacher = row.served_by == TEACHER
    where = urlsplit(teacher)
    found = {
        "gen_ai.operation.name": _OPERATIONS[row.path],
        "gen_ai.provider.name": "openai" if by_teacher else "stillroom",
        "gen_ai.request.model": row.asked_model,
        "gen_ai.response.model": row.answered_model,
        "gen_ai.response.finish_reasons": [row.finish_reason] if row.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": row.first_byte_ms / 1000 if row.stream and row.first_byte_ms else None,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": row.cached_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "server.address": where.hostname if by_teacher else None,
        "server.port": (where.port or {"http": 80}.get(where.scheme, 443)) if by_teacher and where.scheme else None,
        "http.response.status_code": row.status or None,
        "error.type": _error(row),
        "stillroom.exchange": row.id,
        "stillroom.task": row.task,
        "stillroom.served_by": row.served_by,
        "stillroom.teacher": row.teacher,
        "stillroom.lang": row.lang,
        "stillroom.cost_usd": cost,
    }
    return {name: value for name, value in found.items() if value is not None}


def _error(row: Row) -> str | None:
    if row.error:
        return row.error
    return str(row.status) if row.status >= 400 or not row.status else "incomplete" if row.partial else None


def span_ids(exchange: str) -> tuple[int, int]:
    """Trace and span id of an exchange, never zero: the same whenever they are asked for."""
    digest = blake2b(exchange.encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1


class _Maker:
    """The SDK, as the environment configures it."""

    def __init__(self) -> None:
        self._ids, self._ended = _Ids(), _Ended()
        provider = TracerProvider(id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._tracer, self._parent = provider.get_tracer("stillroom"), TraceContextTextMapPropagator()
        self.exporter = OTLPSpanExporter()
        logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)  # It would report every try.

    def spans(self, row: Row, cost: float | None, teacher: str) -> list[ReadableSpan]:
        """The exchange's span, or none where the sampler leaves it out."""
        known = attributes(row, cost, teacher)
        begun = int(row.ts.timestamp() * 1e6) * 1000
        self._ids.given, self._ended.spans = span_ids(row.id), []
        span = self._tracer.start_span(
            f"{known['gen_ai.operation.name']} {row.asked_model or ''}".rstrip(),
            self._parent.extract(_headers(row.headers), Context()),
            SpanKind.CLIENT,
            known,
            start_time=begun,
        )
        if "error.type" in known:
            span.set_status(StatusCode.ERROR)
        span.end(begun + int(row.latency_ms * 1e6))
        return self._ended.spans

    def export(self, spans: Sequence[ReadableSpan]) -> bool:
        """Whether they arrived; waits, so it is for a thread."""
        return self.exporter.export(spans) is SpanExportResult.SUCCESS


class _Ids(IdGenerator):
    given = (1, 1)

    def generate_trace_id(self) -> int:
        return self.given[0]

    def generate_span_id(self) -> int:
        return self.given[1]


class _Ended(SpanProcessor):
    spans: list[ReadableSpan]

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _headers(recorded: str | None) -> Mapping[str, str]:
    return {name.lower(): value for name, value in json.loads(recorded or "[]")}
