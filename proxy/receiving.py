"""Owns what comes from the client: the whole of a request's body, and then whether the client is still there.

Must not know what is asked, nor who answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.exchange import Exchange
from proxy.headers import Headers, header

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_WATCHED_FROM = 0.1  # seconds; most plain answers are whole before, and need no task to watch their client


class BodyTooLarge(Exception):
    """The client's body is over the limit."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises BodyTooLarge, ClientGone."""
    declared = (header(headers, b"content-length") or b"").decode("latin-1")
    if declared.isdigit() and int(declared.lstrip("0")[:19] or 0) > limit:
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


class HangUp:
    """Watches whether the client hangs up. The exchange is then partial, and cancelled after `drain` seconds."""

    def __init__(self, exchange: Exchange, receive: Receive, drain: float) -> None:
        """Made in the task that serves the exchange; nothing is watched before `look`."""
        self.happened = False
        self._exchange, self._receive, self._drain = exchange, receive, drain
        self._task = asyncio.current_task()
        self._watch: asyncio.Future[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Watch from now on, until `leave`."""
        self._watch = asyncio.ensure_future(self._receive())  # After the body, only the disconnect is left to come.
        self._watch.add_done_callback(self._gone)

    def leave(self) -> None:
        """The exchange is over: whatever the client does now is no hang-up."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.remove_done_callback(self._gone)
            self._watch.cancel()

    def _gone(self, _: object) -> None:
        assert self._task is not None
        self.happened = self._exchange.partial = True
        self._exchange.error = self._exchange.error or "client hung up"
        self._timer = asyncio.get_running_loop().call_later(self._drain, self._task.cancel)


class Lookout:
    """Has the clients watched of exchanges that last: one timer for all of them, as a timer each costs more."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._younger: set[HangUp] = set()
        self._older: set[HangUp] = set()
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, hang_up: HangUp) -> None:
        """Let it look in one to two times _WATCHED_FROM seconds, unless it is forgotten before."""
        self._younger.add(hang_up)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WATCHED_FROM, self._tick)

    def forget(self, hang_up: HangUp) -> None:
        """The exchange is over; one that was never expected does not matter."""
        self._younger.discard(hang_up)
        self._older.discard(hang_up)

    def _tick(self) -> None:
        for hang_up in self._older:
            hang_up.look()
        self._older, self._younger = self._younger, set()
        more = bool(self._older)
        self._timer = asyncio.get_running_loop().call_later(_WATCHED_FROM, self._tick) if more else None
