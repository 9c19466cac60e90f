"""Owns the hot path: read the request, decide, forward bytes, spool one record in a `finally`.

A raw ASGI callable. Must not parse bodies, touch a database or wait for anything but the upstream. An exchange is in
the spool before the client gets its last byte: the last chunk of a plain answer, and the `[DONE]` of a stream, wait
for it. Where anything of ours fails, the client still gets the teacher's answer.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.counters import Counters
from proxy.deciding import TEACHER, Asked, CandidateFailed, Decide
from proxy.derive import CHAT, COMPLETIONS, RESPONSES
from proxy.errors import envelope
from proxy.exchange import Exchange
from proxy.headers import Headers, header, without
from proxy.ids import ulid
from proxy.redact import Redactor
from proxy.spool import SpoolWriter
from proxy.upstream import response_headers
from proxy.usage import UsageStripper, ask_for_usage

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Status and body for who may not ask, or None; given the Authorization header and the body.
Refusal = Callable[[str | None, bytes], tuple[int, bytes] | None]

# With the line break before it: inside an answer's JSON a break is escaped, so no text can be taken for the end.
_DONE = b"\ndata: [DONE]"
_WATCHED_FROM = 0.1  # seconds; most plain answers are whole before, and need no task to watch their client
_LAST_EVENTS = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")
_STREAMS_WITH_USAGE = (CHAT, COMPLETIONS)
_log = logging.getLogger("stillroom.proxy")


class UpstreamResponse(Protocol):
    """What the relay needs of an answer."""

    @property
    def status(self) -> int: ...  # noqa: D102

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]: ...  # noqa: D102

    @property
    def content_type(self) -> str: ...  # noqa: D102

    def pieces(self) -> AsyncIterator[bytes]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class Upstream(Protocol):
    """What the relay needs of a teacher."""

    async def forward(self, method: str, target: str, headers: Headers, body: bytes) -> UpstreamResponse:
        """Send the request; return once headers are there."""
        ...


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """`max_body` in bytes; how long an answer is read on for its usage once the client is gone, in seconds."""

    max_body: int
    drain_seconds: float = 0.0
    stream_usage: bool = True
    """Ask for the usage of streams whose client did not, and take it out of the answer again."""


class BodyTooLarge(Exception):
    """The client's body is over the limit."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class Relay:
    """One per worker; `decide` must return at once."""

    def __init__(
        self,
        teacher: Upstream,
        spool: SpoolWriter,
        redactor: Redactor,
        counters: Counters,
        decide: Decide,
        options: RelayOptions,
        refusal: Refusal,
    ) -> None:
        """Hold the collaborators; `decide` and `refusal` must return at once."""
        self._teacher, self._spool, self._redactor = teacher, spool, redactor
        self._counters, self._decide, self._options = counters, decide, options
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request under /v1."""
        started = time.perf_counter()
        try:
            body = await _read_body(scope, receive, self._options.max_body)
        except ClientGone:
            return
        except BodyTooLarge:
            limit = f"the request body is over {self._options.max_body >> 20} MB: raise proxy.max_body_mb or send less"
            self._counters.refused.labels("body_too_large").inc()
            await _answer(send, 413, envelope(limit, "invalid_request_error", "body_too_large"), ())
            return
        headers = scope["headers"]
        refused = self._refusal(_text_of(headers, b"authorization"), body)
        if refused is not None:
            self._counters.refused.labels("key").inc()
            await _answer(send, *refused, ())
            return
        exchange = Exchange(
            id=ulid(),
            ts=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            task=_text_of(headers, b"x-stillroom-task"),
            request_headers=headers,
            request=body,
        )
        self._counters.requests.inc()
        capture = _text_of(headers, b"x-stillroom-capture") != "off"
        kept = _Keeping(self._spool, self._redactor, self._counters, exchange, started, capture)
        try:
            await self._serve(exchange, kept, scope, receive, send)
        except BaseException as error:
            exchange.partial = True
            exchange.error = exchange.error or type(error).__name__
            raise
        finally:
            kept.keep()

    async def _serve(self, exchange: Exchange, kept: "_Keeping", scope: Scope, receive: Receive, send: Send) -> None:
        decision = self._decide(Asked(exchange.path, exchange.request, exchange.task))
        exchange.served_by, exchange.reason = decision.served_by, decision.reason
        if decision.answer is not None:
            try:
                answer = await decision.answer()
            except CandidateFailed as failed:
                exchange.served_by, exchange.fallback = TEACHER, str(failed)
                exchange.confidence = failed.confidence
            else:
                exchange.confidence, exchange.stream = answer.confidence, answer.stream
                await _answer(send, 200, answer.body, [(b"content-type", answer.content_type)], kept)
                return
        client = _Client(exchange, receive, self._options.drain_seconds)
        try:
            await self._from_teacher(exchange, kept, scope, send)
        except asyncio.CancelledError:
            if not client.hung_up:
                raise
        finally:
            client.leave()

    async def _from_teacher(self, exchange: Exchange, kept: "_Keeping", scope: Scope, send: Send) -> None:
        query = f"?{exchange.query}" if exchange.query else ""
        target = scope.get("raw_path", exchange.path.encode()).decode("latin-1") + query
        headers, body = scope["headers"], exchange.request
        asked = ask_for_usage(body) if self._options.stream_usage and exchange.path in _STREAMS_WITH_USAGE else None
        if asked is not None:  # What was asked for has to be taken out again, and so has to be readable.
            headers, body = [*without(headers, b"accept-encoding"), (b"accept-encoding", b"identity")], asked
        try:
            upstream = await self._teacher.forward(exchange.method, target, headers, body)
        except OSError as error:
            exchange.error = f"upstream: {type(error).__name__}"
            await _answer(send, *_unreachable(error), (), kept)
            return
        try:
            await self._pass_on(upstream, exchange, kept, send, asked is not None)
        finally:
            upstream.close()

    async def _pass_on(
        self,
        upstream: UpstreamResponse,
        exchange: Exchange,
        kept: "_Keeping",
        send: Send,
        strip: bool,
    ) -> None:
        exchange.status, exchange.response_headers = upstream.status, upstream.raw_headers
        exchange.stream = upstream.content_type == "text/event-stream"
        strip = strip and exchange.stream and header(upstream.raw_headers, b"content-encoding") is None
        headers = [*response_headers(upstream.raw_headers), *_about(exchange)]
        if strip:
            headers = without(headers, b"content-length")
        await send({"type": "http.response.start", "status": upstream.status, "headers": headers})
        try:
            if exchange.stream:
                await _pass_stream(upstream, exchange, kept, send, UsageStripper() if strip else None)
            else:
                await _pass_plain(upstream, exchange, kept, send)
        except OSError as error:
            exchange.partial, exchange.error = True, exchange.error or f"upstream died: {type(error).__name__}"
            kept.keep()
            if not exchange.stream:
                return  # The answer stays unfinished: the server closes the connection, so the client can tell.
            event = b"\n\ndata: " + envelope("the upstream broke off", "upstream_error", "stream_interrupted") + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})


class _Keeping:
    """Writes the record exactly once, however the exchange ends; a spool that fails never fails the client."""

    def __init__(
        self,
        spool: SpoolWriter,
        redactor: Redactor,
        counters: Counters,
        exchange: Exchange,
        started: float,
        capture: bool,
    ) -> None:
        self._spool, self._redactor, self._counters = spool, redactor, counters
        self.exchange, self._started, self._capture = exchange, started, capture
        self._done = False

    def first_byte(self) -> None:
        self.exchange.first_byte_ms = self._elapsed()

    def keep(self) -> None:
        if self._done:
            return
        self._done = True
        self.exchange.latency_ms = self._elapsed()
        if not self._capture:
            self._counters.opted_out.inc()
            return
        try:
            line = self.exchange.line(self._redactor)
        except Exception:  # Whatever a body does to us, the client gets its answer, and nothing unredacted is kept.
            self._counters.dropped.labels("record").inc()
            _log.exception("exchange %s is not recorded: this is a defect", self.exchange.id)
            return
        try:
            self._spool.append(line)
        except OSError as error:
            self._counters.dropped.labels("spool").inc()
            _log.error("exchange %s is not recorded: the spool failed: %s", self.exchange.id, error.strerror or error)
        else:
            self._counters.captured.inc()

    def _elapsed(self) -> float:
        return round((time.perf_counter() - self._started) * 1000, 3)


class _Client:
    """Watches whether the client hangs up. The exchange is then partial, and cancelled after `drain` seconds."""

    def __init__(self, exchange: Exchange, receive: Receive, drain: float) -> None:
        self.hung_up = False
        self._exchange, self._receive, self._drain = exchange, receive, drain
        self._task = asyncio.current_task()
        self._watch: asyncio.Future[Message] | None = None
        late = 0.0 if b'"stream"' in exchange.request else _WATCHED_FROM
        self._timer = asyncio.get_running_loop().call_later(late, self._look)

    def leave(self) -> None:
        """The exchange is over: whatever the client does now is no hang-up."""
        self._timer.cancel()
        if self._watch is not None:
            self._watch.remove_done_callback(self._gone)
            self._watch.cancel()

    def _look(self) -> None:
        self._watch = asyncio.ensure_future(self._receive())  # After the body, only the disconnect is left to come.
        self._watch.add_done_callback(self._gone)

    def _gone(self, _: object) -> None:
        assert self._task is not None
        self.hung_up = self._exchange.partial = True
        self._exchange.error = self._exchange.error or "client hung up"
        self._timer = asyncio.get_running_loop().call_later(self._drain, self._task.cancel)


async def _pass_plain(upstream: UpstreamResponse, exchange: Exchange, kept: _Keeping, send: Send) -> None:
    received = bytearray()
    exchange.response = received
    held = b""
    async for chunk in upstream.pieces():
        if not received:
            kept.first_byte()
        received += chunk
        if held:
            await send({"type": "http.response.body", "body": held, "more_body": True})
        held = chunk
    kept.keep()
    await send({"type": "http.response.body", "body": held, "more_body": False})


async def _pass_stream(
    upstream: UpstreamResponse, exchange: Exchange, kept: _Keeping, send: Send, stripper: UsageStripper | None
) -> None:
    received = bytearray()
    exchange.response, responses = received, exchange.path == RESPONSES
    async for chunk in upstream.pieces():
        if not received:
            kept.first_byte()
        received += chunk
        if _DONE in received[-len(chunk) - len(_DONE) :] or (responses and _is_last_of_response(received)):
            kept.keep()
        passed = chunk if stripper is None else stripper.feed(chunk)
        if passed:
            await send({"type": "http.response.body", "body": passed, "more_body": True})
    kept.keep()
    rest = b"" if stripper is None else stripper.end()
    await send({"type": "http.response.body", "body": rest, "more_body": False})


def _is_last_of_response(received: bytearray) -> bool:
    """Whether a stream of the Responses API, which sends no `[DONE]`, has just had its last event whole."""
    if not received.endswith(b"\n\n"):
        return False
    before = received.rfind(b"\n\n", 0, -2)
    return received.startswith(_LAST_EVENTS, before + 2 if before >= 0 else 0)


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    declared = _text_of(scope["headers"], b"content-length")
    if declared is not None and declared.isdigit() and int(declared.lstrip("0")[:19] or 0) > limit:
        raise BodyTooLarge
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLarge
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _answer(send: Send, status: int, body: bytes, headers: Headers, kept: "_Keeping | None" = None) -> None:
    """Answer with a body of our own making; recorded first."""
    own = list(headers) or [(b"content-type", b"application/json")]
    if kept is not None:
        kept.exchange.status, kept.exchange.response = status, body
        own += _about(kept.exchange)
        kept.first_byte()
        kept.keep()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*own, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _about(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-stillroom-exchange", exchange.id.encode()),
        (b"x-stillroom-served-by", exchange.served_by.encode()),
        (b"x-stillroom-reason", _printable(exchange.fallback or exchange.reason)),
    ]


def _printable(text: str) -> bytes:
    """As a header's value: a candidate may have put in a word of its own."""
    return "".join(letter if letter.isprintable() else " " for letter in text).encode("ascii", "replace")


def _unreachable(error: Exception) -> tuple[int, bytes]:
    if isinstance(error, TimeoutError):
        return 504, envelope("the teacher did not answer in time", "upstream_error", "upstream_timeout")
    text = "the teacher cannot be reached: check teacher.url and the network"
    return 502, envelope(text, "upstream_error", "upstream_unreachable")


def _text_of(headers: Headers, name: bytes) -> str | None:
    value = header(headers, name)
    return None if value is None else value.decode("latin-1")
