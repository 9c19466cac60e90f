"""Owns the hot path: read the request, decide, forward bytes, spool one record in a `finally`.

A raw ASGI callable. Must not parse bodies, touch a database or wait for anything but the upstream. An exchange is in
the spool before the client gets its last byte: the last chunk of a plain answer, and the `[DONE]` of a stream, wait
for it. Where anything of ours fails, the client still gets the teacher's answer.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from proxy.client import Headers
from proxy.counters import Counters
from proxy.deciding import TEACHER, Asked, CandidateFailed, Decide
from proxy.errors import envelope
from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.spool import SpoolWriter
from proxy.upstream import response_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# With the line break before it: inside an answer's JSON a break is escaped, so no text can be taken for the end.
_DONE = b"\ndata: [DONE]"
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


class BodyTooLarge(Exception):
    """The client's body is over the limit."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class Relay:
    """One per worker; `decide` must return at once."""

    def __init__(
        self, teacher: Upstream, spool: SpoolWriter, counters: Counters, decide: Decide, max_body: int
    ) -> None:
        """Hold the collaborators; `max_body` in bytes."""
        self._teacher, self._spool, self._counters = teacher, spool, counters
        self._decide, self._max_body = decide, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request under /v1."""
        started = time.perf_counter()
        try:
            body = await _read_body(scope, receive, self._max_body)
        except ClientGone:
            return
        except BodyTooLarge:
            limit = f"the request body is over {self._max_body >> 20} MB: raise proxy.max_body_mb or send less"
            await _answer(send, 413, envelope(limit, "invalid_request_error", "body_too_large"), ())
            return
        headers = scope["headers"]
        exchange = Exchange(
            id=ulid(),
            ts=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            task=_header(headers, b"x-stillroom-task"),
            request_headers=headers,
            request=body,
        )
        self._counters.requests.inc()
        kept = _Keeping(self._spool, self._counters, exchange, started, _header(headers, b"x-stillroom-capture"))
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
        await self._from_teacher(exchange, kept, scope, receive, send)

    async def _from_teacher(
        self, exchange: Exchange, kept: "_Keeping", scope: Scope, receive: Receive, send: Send
    ) -> None:
        query = f"?{exchange.query}" if exchange.query else ""
        target = scope.get("raw_path", exchange.path.encode()).decode("latin-1") + query
        try:
            upstream = await self._teacher.forward(exchange.method, target, scope["headers"], exchange.request)
        except OSError as error:
            exchange.error = f"upstream: {type(error).__name__}"
            await _answer(send, *_unreachable(error), (), kept)
            return
        try:
            await self._pass_on(upstream, exchange, kept, receive, send)
        finally:
            upstream.close()

    async def _pass_on(
        self,
        upstream: UpstreamResponse,
        exchange: Exchange,
        kept: "_Keeping",
        receive: Receive,
        send: Send,
    ) -> None:
        exchange.status, exchange.response_headers = upstream.status, upstream.raw_headers
        exchange.stream = upstream.content_type == "text/event-stream"
        headers = [*response_headers(upstream.raw_headers), *_about(exchange)]
        await send({"type": "http.response.start", "status": upstream.status, "headers": headers})
        try:
            if exchange.stream:
                await _pass_stream(upstream, exchange, kept, receive, send)
            else:
                await _pass_plain(upstream, exchange, kept, send)
        except OSError as error:
            exchange.partial, exchange.error = True, exchange.error or f"upstream died: {type(error).__name__}"
            kept.keep()
            if not exchange.stream:
                return  # The answer stays unfinished: the server closes the connection, so the client can tell.
            event = b"data: " + envelope("the upstream broke off", "upstream_error", "stream_interrupted") + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})


class _Keeping:
    """Writes the record exactly once, however the exchange ends; a spool that fails never fails the client."""

    def __init__(
        self, spool: SpoolWriter, counters: Counters, exchange: Exchange, started: float, capture: str | None
    ) -> None:
        self._spool, self._counters, self.exchange, self._started = spool, counters, exchange, started
        self._opted_out = capture == "off"
        self._done = False

    def first_byte(self) -> None:
        self.exchange.first_byte_ms = self._elapsed()

    def keep(self) -> None:
        if self._done:
            return
        self._done = True
        self.exchange.latency_ms = self._elapsed()
        if self._opted_out:
            self._counters.opted_out.inc()
            return
        try:
            self._spool.append(self.exchange.line())
        except OSError as error:
            self._counters.dropped.labels("spool").inc()
            _log.error("exchange %s is not recorded: the spool failed: %s", self.exchange.id, error.strerror or error)
        else:
            self._counters.captured.inc()

    def _elapsed(self) -> float:
        return round((time.perf_counter() - self._started) * 1000, 3)


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
    upstream: UpstreamResponse, exchange: Exchange, kept: _Keeping, receive: Receive, send: Send
) -> None:
    received = bytearray()
    exchange.response = received
    gone = asyncio.ensure_future(receive())  # After the body, the only message left is the disconnect.

    def hang_up(_: object) -> None:
        exchange.error = exchange.error or "client hung up"
        upstream.close()

    gone.add_done_callback(hang_up)
    try:
        async for chunk in upstream.pieces():
            if not received:
                kept.first_byte()
            received += chunk
            if _DONE in received[-len(chunk) - len(_DONE) :]:
                kept.keep()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if gone.done():
            raise ConnectionAbortedError("client hung up")
    finally:
        gone.remove_done_callback(hang_up)
        gone.cancel()
    kept.keep()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    declared = _header(scope["headers"], b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
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
    ]


def _unreachable(error: Exception) -> tuple[int, bytes]:
    if isinstance(error, TimeoutError):
        return 504, envelope("the teacher did not answer in time", "upstream_error", "upstream_timeout")
    text = "the teacher cannot be reached: check teacher.url and the network"
    return 502, envelope(text, "upstream_error", "upstream_unreachable")


def _header(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)
