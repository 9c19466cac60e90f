"""Owns what uvicorn leaves open of HTTP/1.1 on the public port: upgrades, heads and bodies without end, trailers.

Must not know what a request asks for. Every limit here is on what a client does before its request is whole.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 1 << 20
_PATIENCE = 60.0  # seconds for a whole head, and between two pieces of a body


class _Joining:
    """The part of a transport that uvicorn writes to: the head of an answer goes out with what follows it at once.

    That is one system call and one packet fewer an answer. A head whose body is still to come waits for nothing.
    """

    __slots__ = ("_head", "_loop", "_transport", "head_next")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self.head_next = False

    def write(self, data: bytes) -> None:
        if self.head_next:
            self.head_next = False
            self._head += data
            self._loop.call_soon(self.flush)
        elif self._head:
            data, self._head = self._head + data, b""
            self._transport.write(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Wire(HttpToolsProtocol):
    """uvicorn's protocol, stricter: for `uvicorn.Config(http=Wire, ws="none")`."""

    def connection_made(self, transport: Any) -> None:
        """Wait for a head."""
        super().connection_made(transport)
        self._joining = _Joining(transport, self.loop)
        self.transport = cast(asyncio.Transport, self._joining)
        self._refusal = ""
        self._head_bytes: int | None = 0  # None outside of a head
        self._owing: float | None = self.loop.time()  # since when we wait for the client; None while it waits for us
        self._watch: asyncio.TimerHandle = self.loop.call_later(_PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a head without end before it is kept."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.send_400_response("the head of the request is too large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._owing = self.loop.time()

    def on_headers_complete(self) -> None:
        """Refuse an upgrade: the parser would take the body for another protocol, or for the next request."""
        self._head_bytes = None
        if self.parser.should_upgrade():
            self._refusal = "no upgrade is offered here: switch HTTP/2 (h2c) or WebSocket off in the client"
            raise ValueError(self._refusal)
        self._joining.head_next = True
        super().on_headers_complete()
        self.scope["headers"] = list(self.headers)  # Trailers are parsed into the same list, long after the checks.

    def on_body(self, body: bytes) -> None:
        """The client goes on."""
        self._owing = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._owing, self._head_bytes = None, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong where we know."""
        super().send_400_response(self._refusal or msg)

    def _look(self) -> None:
        waited = 0.0 if self._owing is None else self.loop.time() - self._owing
        if waited >= _PATIENCE:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(_PATIENCE - waited, self._look)
