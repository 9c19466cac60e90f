"""Owns a student's answer that flows: asked for as a stream, held until its first tokens are sure, then passed on.

The rule is that of `router.candidates`, only that what follows the first tokens is not waited for. Must not decide
whether a candidate is asked at all.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.deciding import Answer, CandidateFailed
from router.candidates import (
    CUT_OFF,
    ENDED,
    EVENTS,
    SHAPE_ERRORS,
    TOO_LONG,
    UNREACHABLE,
    UNREADABLE,
    chunk,
    client_limit,
    closing,
    counts,
    how_sure,
    new_head,
    opening,
    reaching,
    refuse_status,
    refuse_unsure,
    student_request,
    wants_usage,
)  # fmt: skip
from router.policy import Route

TOO_SLOW = "candidate too slow"  # Its first tokens were not there in time.


@dataclass(frozen=True, slots=True)
class _Step:
    """One event of an engine: the text and log-probabilities (nats) of the tokens that came, and what ended."""

    text: str = ""
    logprobs: tuple[float, ...] = ()
    finish: str | None = None
    usage: Mapping[str, int] | None = None


async def early(
    session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any], free: Callable[[], None]
) -> Answer:
    """The student's answer from its first tokens on, once they are sure; CandidateFailed before any byte is out.

    `free` is called when that answer is closed, however far it has come; not where there is none.
    """
    url, payload = student_request(route, body)
    payload |= {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": _limit(route, body)}
    head, with_usage = new_head(route, body), wants_usage(body)
    try:
        async with asyncio.timeout(route.hold):
            flow = Early(await _opened(session, route, url, payload), head, with_usage, free)
            try:
                sure = await flow.begin(route)
            except BaseException:
                flow.end()
                raise
    except TimeoutError:
        raise CandidateFailed(TOO_SLOW) from None
    return Answer(EVENTS, b"", True, sure, flow)


class Early:
    """A student's answer under way, as the relay passes it on."""

    def __init__(
        self, response: aiohttp.ClientResponse, head: Mapping[str, Any], with_usage: bool, free: Callable[[], None]
    ) -> None:
        """`head` is what its events begin with; `free` is called by `close`."""
        self._response, self._head, self._with_usage, self._free = response, head, with_usage, free
        self._held: list[_Step] = []

    async def begin(self, route: Route) -> float:
        """Hold the tokens that decide; how sure they are, CandidateFailed where that is too little."""
        logprobs: list[float] = []
        finish = None
        while len(logprobs) < route.first_tokens and finish is None:
            step = await self._next()
            logprobs += step.logprobs
            finish = step.finish
            self._held.append(step)
        try:
            sure = how_sure(route, logprobs)
        except SHAPE_ERRORS:
            raise CandidateFailed(UNREADABLE) from None
        if finish == "length" and len(logprobs) < min(route.first_tokens, route.max_tokens or 0):
            raise CandidateFailed(TOO_LONG, sure)  # Fewer tokens than decide are surer, and were never compared.
        refuse_unsure(route, sure)
        return sure

    async def pieces(self) -> AsyncIterator[bytes]:
        """What the client gets: first all that was held, then a piece for each of the engine's events."""
        yield b"".join([opening(self._head, self._with_usage), *map(self._piece, self._held)])
        usage, ended = None, any(step.finish for step in self._held)
        while usage is None:
            step = await self._next()
            usage, ended = step.usage, ended or step.finish is not None
            if piece := self._piece(step):
                yield piece
        if not ended:
            raise CandidateFailed(UNREADABLE)
        yield closing(self._head, usage, self._with_usage)

    def close(self) -> None:
        """The engine is told by the closed connection; the candidate may be asked again."""
        self.end()
        self._free()

    def end(self) -> None:
        """Close the connection."""
        self._response.close()

    def _piece(self, step: _Step) -> bytes:
        text = chunk(self._head, {"content": step.text}, None, self._with_usage) if step.text else b""
        return text + (chunk(self._head, {}, step.finish, self._with_usage) if step.finish else b"")

    async def _next(self) -> _Step:
        """The next event; CandidateFailed where the engine breaks off before it has told the usage."""
        try:
            with reaching(UNREACHABLE):
                async for line in self._response.content:
                    if line.startswith(b"data:"):
                        return _step(line[5:])
        except SHAPE_ERRORS:
            raise CandidateFailed(UNREADABLE) from None
        raise CandidateFailed(f"{UNREACHABLE}: it broke off")


async def _opened(
    session: aiohttp.ClientSession, route: Route, url: str, payload: Mapping[str, Any]
) -> aiohttp.ClientResponse:
    """The engine's answer, of which nothing is read; it may pause for the candidate's timeout between two events."""
    timeout = aiohttp.ClientTimeout(sock_read=route.timeout)
    with reaching(UNREACHABLE):
        response = await session.post(url, json=payload, timeout=timeout, allow_redirects=False)
    try:
        refuse_status(response.status)
    except CandidateFailed:
        response.close()
        raise
    return response


def _limit(route: Route, body: Mapping[str, Any]) -> int | None:
    limit = client_limit(body)
    return route.max_tokens if limit is None or route.max_tokens is None else min(limit, route.max_tokens)


def _step(data: bytes) -> _Step:
    """Read an event as vLLM writes it; its errors, and an end before the usage, have another shape."""
    event = json.loads(data)
    if not event["choices"]:
        return _Step(usage=counts(event["usage"]))
    choice = event["choices"][0]
    text, finish = choice["delta"].get("content") or "", choice.get("finish_reason")
    if not isinstance(text, str):
        raise TypeError("content is no text")
    if finish is not None and finish not in ENDED:
        raise CandidateFailed(f"{CUT_OFF} {finish}")
    logprobs = (choice.get("logprobs") or {}).get("content") or ()
    return _Step(text, tuple(token["logprob"] for token in logprobs), finish)
