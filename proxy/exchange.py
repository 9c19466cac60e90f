"""Owns the exchange as the spool records it: one client request with its response or error, as it went over the wire.

Must not interpret bodies; the log derives tokens, task and cost later. No key, cookie or other credential is ever part
of a record: headers are kept by an allow-list, and everything else passes the redactor.
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from proxy.bodies import inflated
from proxy.headers import Headers, header
from proxy.logprobs import Position, packed
from proxy.redact import Body, Redactor

# Names only: what helps to read a record later and cannot carry a secret.
_KEPT_HEADERS = frozenset(
    {
        b"content-type", b"content-encoding", b"content-length", b"user-agent", b"retry-after",
        b"x-request-id", b"openai-processing-ms", b"openai-version", b"x-stillroom-task", b"idempotency-key",
        b"traceparent",
    }
)  # fmt: skip


@dataclass(slots=True)
class Exchange:
    """Filled in while the exchange happens; `line` is what the spool keeps. Times in milliseconds.

    `teacher` names the declared teacher that was asked (None: the usual one), `lang` is the request's language where
    that decided. `logprobs` are of the answer's tokens, where we asked for them; they spell the text. `started` is
    time.perf_counter's, in seconds; `capture` says whether to keep it, `kept` that this is done, `recorded` that it is
    in the spool.
    """

    id: str
    ts: float
    method: str
    path: str
    query: str = ""
    task: str | None = None
    tenant: str | None = None
    request_headers: Headers = ()
    request: bytes = b""
    status: int = 0
    response_headers: Headers = ()
    response: bytes | bytearray = b""
    stream: bool = False
    partial: bool = False
    error: str | None = None
    served_by: str = "teacher"
    reason: str = ""
    confidence: float | None = None
    fallback: str | None = None
    deployment: str = ""
    attempts: int = 0
    teacher: str | None = None
    lang: str | None = None
    first_byte_ms: float | None = None
    latency_ms: float = 0.0
    logprobs: Sequence[Position] = ()
    started: float = field(default_factory=time.perf_counter)
    capture: bool = True
    kept: bool = False
    recorded: bool = False

    def first_byte(self) -> None:
        """The answer begins."""
        self.first_byte_ms = self.elapsed_ms()

    def elapsed_ms(self) -> float:
        """Since the request began to arrive."""
        return round((time.perf_counter() - self.started) * 1000, 3)

    def line(self, redactor: Redactor) -> bytes:
        """One NDJSON line; bodies that are not UTF-8 are base64 with the encoding named. Sizes are the wire's."""
        plain = _readable(self.request, self.request_headers), _readable(self.response, self.response_headers)
        bodies = redactor.exchange(*plain)
        request, request_encoding = _text(bodies[0])
        response, response_encoding = _text(bodies[1])
        record: dict[str, Any] = {
            "id": self.id,
            "ts": datetime.fromtimestamp(self.ts, UTC),
            "method": self.method,
            "path": self.path,
            "query": redactor.text(self.query),
            "task_header": self.task,
            "tenant": self.tenant,
            "request_headers": _kept(self.request_headers),
            "request": request,
            "request_encoding": request_encoding,
            "request_bytes": len(self.request),
            "status": self.status,
            "response_headers": _kept(self.response_headers),
            "response": response,
            "response_encoding": response_encoding,
            "response_bytes": len(self.response),
            "stream": self.stream,
            "partial": self.partial,
            "error": self.error,
            "served_by": self.served_by,
            "reason": self.reason,
            "confidence": self.confidence,
            "fallback": self.fallback,
            "deployment": self.deployment,
            "attempts": self.attempts,
            "teacher": self.teacher,
            "lang": self.lang,
            "first_byte_ms": self.first_byte_ms,
            "latency_ms": self.latency_ms,
        }
        if self.logprobs and not self.partial and bodies[0] is plain[0] and bodies[1] is plain[1]:
            record["logprobs"] = base64.b64encode(packed(self.logprobs)).decode("ascii")
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def holds_logprobs(line: bytes) -> bool:
    """Whether there are log-probabilities in a record: they are its last member, and the only last one that is text."""
    return line.endswith(b'"}\n')


def _readable(body: Body, headers: Headers) -> Body:
    """A compressed text as the text it is, or nothing could be redacted in it; other bodies as they are."""
    coding = header(headers, b"content-encoding")
    if coding is None or not body:
        return body
    plain = inflated(bytes(body), coding.decode("latin-1"))
    try:
        plain.decode()
    except UnicodeDecodeError:
        return body
    return plain


def _text(body: Body) -> tuple[str, str]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"
    # JSON itself allows NUL escaped, but the log's text columns do not hold it.
    return (text, "utf-8") if "\0" not in text else (base64.b64encode(body).decode("ascii"), "base64")


def _kept(headers: Headers) -> list[tuple[str, str]]:
    kept = [field for field in headers if field[0].lower() in _KEPT_HEADERS]
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept]
