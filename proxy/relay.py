"""Owns the hot path: read the request, decide, forward bytes, spool one record in a `finally`.

A raw ASGI callable. Must not parse bodies, touch a database or wait for anything but the upstream and the record. An
exchange is in the spool before the client gets its last byte: the last chunk of a plain answer, and the `[DONE]` of a
stream, wait for it. Where anything of ours fails, the client still gets the teacher's answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.admitting import Admit, Denied
from proxy.answers import UpstreamResponse, held
from proxy.asking import Asking
from proxy.choosing import Choose
from proxy.counters import Counters
from proxy.deciding import TEACHER, Answer, Asked, CandidateFailed, Decide, Flow
from proxy.derive import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from proxy.errors import envelope
from proxy.exchange import Exchange
from proxy.feedback import FEEDBACK, NOT_KEPT, PATHS, STILLROOM, respond
from proxy.headers import Headers, header, without
from proxy.ids import ulid
from proxy.keeping import Keeper
from proxy.receiving import BodyTooLarge, ClientGone, HangUp, Lookout, Message, Receive, read_body
from proxy.stripper import UsageStripper
from proxy.sunset import MISSING, SUCCESSOR, Succeeded, Succession, is_gone
from proxy.upstream import response_headers
from proxy.usage import ask_for_usage

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

# With the line break before it: inside an answer's JSON a break is escaped, so no text can be taken for the end.
_DONE = b"\ndata: [DONE]"
_LAST_EVENTS = (  # of the Responses API, and of Anthropic's Messages
    b"event: response.completed", b"event: response.incomplete", b"event: response.failed", b"event: message_stop",
)  # fmt: skip
_STREAMS_WITH_USAGE = (CHAT, COMPLETIONS)
_JSON = ((b"content-type", b"application/json"),)


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
    succession: Succession = field(default_factory=Succession)
    """Which models are asked in the place of those that have ended."""
    asking: Asking | None = None
    """Which requests ask for log-probabilities too; nobody's, without."""
    choose: Choose | None = None
    """Which requests are for a named teacher; all are for the usual one, without."""
    named: Mapping[str, "Upstream"] = field(default_factory=dict)


class Relay:
    """One per worker; `decide` must return at once."""

    def __init__(
        self,
        teacher: Upstream,
        keeper: Keeper,
        counters: Counters,
        decide: Decide,
        options: RelayOptions,
        admit: Admit,
    ) -> None:
        """Hold the collaborators; `decide` and `admit` must return at once."""
        self._teacher, self._keeper, self._counters = teacher, keeper, counters
        self._decide, self._options, self._admit = decide, options, admit
        self._lookout = Lookout()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request under /v1."""
        started, headers = time.perf_counter(), scope["headers"]
        try:
            body = await read_body(headers, receive, self._options.max_body)
        except ClientGone:
            return
        except BodyTooLarge:
            limit = f"the request body is over {self._options.max_body >> 20} MB: raise proxy.max_body_mb or send less"
            self._counters.refused.labels("body_too_large").inc()
            await _answer(send, 413, envelope(limit, "invalid_request_error", "body_too_large"))
            return
        admitted = self._admit(scope["path"], headers, body)
        if isinstance(admitted, Denied):
            self._counters.refused.labels(admitted.reason).inc()
            await _answer(send, admitted.status, admitted.body, admitted.headers)
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
            started=started,
            tenant=admitted.tenant,
            capture=admitted.capture and header(headers, b"x-stillroom-capture") != b"off",
        )
        self._counters.began()
        try:
            await self._serve(exchange, scope, receive, send)
        except BaseException as error:
            exchange.partial = True
            exchange.error = exchange.error or type(error).__name__
            raise
        finally:
            self._keeper.keep(exchange)
            self._counters.finished(exchange)
            if admitted.settle is not None:
                admitted.settle(exchange)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        if exchange.path in PATHS:
            await self._take_feedback(exchange, send)
            return
        self._choose(exchange)
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
                if answer.flow is None:
                    await self._own_answer(exchange, send, 200, answer.body, answer.content_type)
                else:
                    await self._own_stream(exchange, receive, send, answer, answer.flow)
                return
        hang_up = HangUp(exchange, receive, self._options.drain_seconds)
        if b'"stream"' in exchange.request:
            hang_up.look()
        else:
            self._lookout.expect(hang_up)
        try:
            await self._from_teacher(exchange, scope, send)
        except asyncio.CancelledError:
            if not hang_up.happened:
                raise
        finally:
            self._lookout.forget(hang_up)
            hang_up.leave()

    def _choose(self, exchange: Exchange) -> None:
        """Whose exchange it is, whoever answers: its request names the model that is paid for, or would be."""
        choose = self._options.choose if exchange.method == "POST" else None
        chosen = choose(exchange.path, exchange.request_headers, exchange.request) if choose is not None else None
        if chosen is not None:
            exchange.teacher, exchange.lang, exchange.request = chosen

    async def _from_teacher(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        query = f"?{exchange.query}" if exchange.query else ""
        target = scope.get("raw_path", exchange.path.encode()).decode("latin-1") + query
        if exchange.teacher is None:
            _succeed(exchange, self._options.succession(exchange.request, exchange.ts))
        else:
            target = CHAT  # A query was meant for the usual teacher, and may hold a key.
        try:
            upstream, usage = await self._asked(exchange, target, scope["headers"])
        except OSError as error:
            exchange.error = f"upstream: {type(error).__name__}"
            await self._own_answer(exchange, send, *_unreachable(exchange, error))
            return
        try:
            await self._pass_on(upstream, exchange, send, usage)
        finally:
            upstream.close()

    async def _asked(self, exchange: Exchange, target: str, headers: Headers) -> tuple[UpstreamResponse, bool]:
        """The teacher's answer less log-probabilities that we asked for, and whether we asked for usage, too."""
        asking, body = self._options.asking, self._with_usage(exchange)
        usage = body is not exchange.request
        question = None if asking is None else asking.of(exchange, body)
        if question is not None:
            body = question.body
        readable = _readable(headers) if usage or question is not None else headers
        upstream = await self._forward(exchange, target, readable, body)
        if asking is None or question is None:
            return upstream, usage

        async def again() -> UpstreamResponse:
            plain = self._with_usage(exchange)
            return await self._forward(exchange, target, _readable(headers) if usage else headers, plain)

        return await asking.answer(exchange, question.kind, upstream, again), usage

    def _with_usage(self, exchange: Exchange) -> bytes:
        """The request as it also asks for usage; the very same where there is nothing to ask."""
        if not self._options.stream_usage or exchange.path not in _STREAMS_WITH_USAGE:
            return exchange.request
        return ask_for_usage(exchange.request) or exchange.request

    async def _forward(self, exchange: Exchange, target: str, headers: Headers, body: bytes) -> UpstreamResponse:
        """The teacher's answer; its successor's where it says, before any byte, that it has no such model."""
        succession = self._options.succession
        if exchange.teacher is not None:  # Sunsets are of the usual teacher's models.
            return await self._options.named[exchange.teacher].forward(exchange.method, target, headers, body)
        upstream = await self._teacher.forward(exchange.method, target, headers, body)
        instead = succession.instead(body) if upstream.status == 404 else None
        if instead is None:
            return upstream
        said = await held(upstream)
        if not is_gone(said.status, said.plain):
            return said
        succession.missed(instead.model, time.time())
        _succeed(exchange, succession.instead(exchange.request), MISSING)
        return await self._teacher.forward(exchange.method, target, headers, instead.body)

    async def _pass_on(self, upstream: UpstreamResponse, exchange: Exchange, send: Send, strip: bool) -> None:
        exchange.status, exchange.response_headers = upstream.status, upstream.raw_headers
        exchange.deployment, exchange.attempts = upstream.deployment, upstream.attempts
        exchange.stream = upstream.content_type == "text/event-stream"
        strip = strip and exchange.stream and header(upstream.raw_headers, b"content-encoding") is None
        headers = [*response_headers(upstream.raw_headers), *_about(exchange)]
        if strip:
            headers = without(headers, b"content-length")
        await send({"type": "http.response.start", "status": upstream.status, "headers": headers})
        stripper = UsageStripper() if strip else None
        try:
            if exchange.stream:
                await self._pass_stream(upstream, exchange, send, stripper)
            else:
                await self._pass_plain(upstream, exchange, send)
        except OSError as error:
            await self._broke(exchange, f"upstream died: {type(error).__name__}")
            if not exchange.stream:
                return  # The answer stays unfinished: the server closes the connection, so the client can tell.
            rest = b"" if stripper is None else stripper.end()
            await send({"type": "http.response.body", "body": rest + _broken_off(exchange.path), "more_body": False})

    async def _broke(self, exchange: Exchange, error: str) -> None:
        exchange.partial, exchange.error = True, exchange.error or error
        await self._keeper.written(exchange)

    async def _pass_plain(self, upstream: UpstreamResponse, exchange: Exchange, send: Send) -> None:
        received = bytearray()
        exchange.response = received
        held = b""
        async for chunk in upstream.pieces():
            if not received:
                exchange.first_byte()
            received += chunk
            if held:
                await send({"type": "http.response.body", "body": held, "more_body": True})
            held = chunk
        await self._keeper.written(exchange)
        await send({"type": "http.response.body", "body": held, "more_body": False})

    async def _pass_stream(
        self, upstream: UpstreamResponse | Flow, exchange: Exchange, send: Send, stripper: UsageStripper | None
    ) -> None:
        received = bytearray()
        exchange.response, eventful = received, exchange.path in (RESPONSES, MESSAGES)
        async for chunk in upstream.pieces():
            if not received:
                exchange.first_byte()
            received += chunk
            if _DONE in received[-len(chunk) - len(_DONE) :] or (eventful and _is_last_event(received)):
                await self._keeper.written(exchange)
            passed = chunk if stripper is None else stripper.feed(chunk)
            if passed:
                await send({"type": "http.response.body", "body": passed, "more_body": True})
        await self._keeper.written(exchange)
        rest = b"" if stripper is None else stripper.end()
        await send({"type": "http.response.body", "body": rest, "more_body": False})

    async def _take_feedback(self, exchange: Exchange, send: Send) -> None:
        """Nobody else is asked; who gets a 200 has the feedback in the spool."""
        exchange.path, exchange.served_by, exchange.reason = FEEDBACK, STILLROOM, "feedback"
        exchange.status, exchange.response = respond(exchange.method, exchange.id, exchange.request, exchange.capture)
        exchange.first_byte()
        await self._keeper.written(exchange)
        if exchange.status == 200 and not exchange.recorded:
            exchange.status, exchange.response = 503, NOT_KEPT
        await _answer(send, exchange.status, bytes(exchange.response), [*_JSON, *_about(exchange)])

    async def _own_answer(
        self, exchange: Exchange, send: Send, status: int, body: bytes, content_type: bytes = b"application/json"
    ) -> None:
        """An answer that does not come from the teacher; recorded first."""
        exchange.status, exchange.response = status, body
        exchange.first_byte()
        await self._keeper.written(exchange)
        await _answer(send, status, body, [(b"content-type", content_type), *_about(exchange)])

    async def _own_stream(self, exchange: Exchange, receive: Receive, send: Send, answer: Answer, flow: Flow) -> None:
        """A candidate's answer as it comes; who hangs up ends it at once, as its tokens cost nobody's money."""
        hang_up = HangUp(exchange, receive, 0.0)
        hang_up.look()
        exchange.status = 200
        headers = [(b"content-type", answer.content_type), *_about(exchange)]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._pass_stream(flow, exchange, send, None)
        except CandidateFailed as failed:
            await self._broke(exchange, str(failed))
            await send({"type": "http.response.body", "body": _broken_off(exchange.path), "more_body": False})
        except asyncio.CancelledError:
            if not hang_up.happened:
                raise
        finally:
            flow.close()
            hang_up.leave()


def _readable(headers: Headers) -> Headers:
    """What was asked for has to be taken out of the answer again, and so has to be readable."""
    return [*without(headers, b"accept-encoding"), (b"accept-encoding", b"identity")]


def _succeed(exchange: Exchange, by: Succeeded | None, between: str = " for ") -> None:
    """Recorded as its successor is asked, as that is what is paid for; the reason tells what the client asked for."""
    if by is not None:
        exchange.request = by.body
        exchange.reason = f"{SUCCESSOR}{by.successor}{between}{by.model}; {exchange.reason}"


def _broken_off(path: str) -> bytes:
    """The event that says so, in the form of the API, behind whatever there was of another."""
    if path == MESSAGES:
        error = b'{"type":"error","error":{"type":"api_error","message":"the upstream broke off"}}'
        return b"\n\nevent: error\ndata: " + error + b"\n\n"
    return b"\n\ndata: " + envelope("the upstream broke off", "upstream_error", "stream_interrupted") + b"\n\n"


def _is_last_event(received: bytearray) -> bool:
    """Whether a stream of an API that sends no `[DONE]` has just had its last event whole."""
    if not received.endswith(b"\n\n"):
        return False
    before = received.rfind(b"\n\n", 0, -2)
    return received.startswith(_LAST_EVENTS, before + 2 if before >= 0 else 0)


async def _answer(send: Send, status: int, body: bytes, headers: Headers = _JSON) -> None:
    """Send a whole answer of our own making."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _about(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    reason = exchange.fallback or exchange.reason
    if exchange.fallback and exchange.reason.startswith(SUCCESSOR):
        reason = f"{exchange.reason}; {exchange.fallback}"
    named = exchange.teacher is not None and exchange.served_by == TEACHER
    return [
        *([(b"x-stillroom-teacher", str(exchange.teacher).encode())] if named else []),
        (b"x-stillroom-exchange", exchange.id.encode()),
        (b"x-stillroom-served-by", exchange.served_by.encode()),
        (b"x-stillroom-reason", _printable(reason)),
    ]


def _printable(text: str) -> bytes:
    """As a header's value: a candidate may have put in a word of its own."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text.encode("ascii", "replace")


def _unreachable(exchange: Exchange, error: Exception) -> tuple[int, bytes]:
    if isinstance(error, TimeoutError):
        return 504, envelope("the teacher did not answer in time", "upstream_error", "upstream_timeout")
    place = "teacher" if exchange.teacher is None else f"teacher.named.{exchange.teacher}"
    text = f"the teacher cannot be reached: check {place}.url and the network"
    return 502, envelope(text, "upstream_error", "upstream_unreachable")


def _text_of(headers: Headers, name: bytes) -> str | None:
    value = header(headers, name)
    return None if value is None else value.decode("latin-1")
