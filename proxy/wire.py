"""Owns what uvicorn leaves open of HTTP/1.1 on the public port: upgrades, heads and bodies without end, trailers.

Must not know what a request asks for. Every limit here is on what a client does before its request is whole.
"""

import asyncio
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from proxy.headers import Headers, header

_HEAD_BYTES = 1 << 20
_VERSIONS = ("1.1", "1.0")
_PATIENCE = 60.0  # seconds for a whole head, and between two pieces of a body
_LINGER = 2.0  # seconds in which a client that goes on sending may still read why it was refused


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

    def end(self, data: bytes) -> None:
        """Write for the last time; what arrives is still taken."""
        head, self._head = self._head, b""
        self._transport.write(head + data)
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Answering(RequestResponseCycle):
    """uvicorn's side of one exchange, with a shorter way out: an answer is checked as a whole, not name by name."""

    async def send(self, message: Any) -> None:
        """As uvicorn's; the names of headers are given in lower case."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete or (message["type"] == "http.response.start") is self.response_started:
            raise RuntimeError(f"{message['type']} comes out of turn")
        if not self.response_started:
            self.response_started, self.waiting_for_100_continue = True, False
            self.transport.write(self._head(message["status"], message["headers"]))
            return
        last = not message.get("more_body", False)
        self._write(message.get("body", b""), last)
        if last:
            self._complete()

    def _head(self, status: int, headers: Headers) -> bytes:
        lines, names, values = [STATUS_LINE[status]], [], []
        for name, value in headers:
            names.append(name)
            values.append(value)
            lines += (name, b": ", value, b"\r\n")
        if HEADER_RE.search(b"".join(names)) or HEADER_VALUE_RE.search(b"".join(values)):
            raise RuntimeError("a header of the answer would be read as something else")
        if b"content-length" in names:
            self.expected_content_length = int(values[names.index(b"content-length")])
            self.chunked_encoding = False
        elif self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if b"connection" in names and b"close" in values[names.index(b"connection")].lower():
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _write(self, body: bytes, last: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.transport.write(piece + b"0\r\n\r\n" if last else piece)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (last and self.expected_content_length):
                raise RuntimeError("the answer is not as long as it says")
            self.transport.write(body)

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class Wire(HttpToolsProtocol):
    """uvicorn's protocol, stricter: for `uvicorn.Config(http=Wire, ws="none")`."""

    def connection_made(self, transport: Any) -> None:
        """Wait for a head."""
        super().connection_made(transport)
        self._joining = _Joining(transport, self.loop)
        self.transport = cast(asyncio.Transport, self._joining)
        self._refusal = ""
        self._answering: RequestResponseCycle | None = None  # `cycle` is the one whose request came last
        self._broken = ""  # what to say once the answers that are still owed are out
        self._head_bytes: int | None = 0  # None outside of a head
        self._owing: float | None = self.loop.time()  # since when we wait for the client; None while it waits for us
        self._patience = _PATIENCE  # how long we do
        self._watch: asyncio.TimerHandle = self.loop.call_later(_PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer; whoever is answering is told, not only the last in the line."""
        self._watch.cancel()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a head without end before it is kept."""
        if self._broken:
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.send_400_response("the head of the request is too large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._owing, self._patience = self.loop.time(), _PATIENCE

    def on_headers_complete(self) -> None:
        """Refuse what the parser takes and others would understand differently."""
        self._head_bytes = None
        self._refusal = self._refused()
        if self._refusal:
            raise ValueError(self._refusal)
        self._joining.head_next = True
        self._describe()
        before, self.cycle = self.cycle, Answering(
            self.scope, self.transport, self.flow, self.logger, self.access_logger, self.access_log,
            self.server_state.default_headers, asyncio.Event(), self.expect_100_continue,
            self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive(), self.on_response_complete,
        )  # fmt: skip
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """The client goes on."""
        self._owing = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._owing, self._head_bytes = None, 0
        if self.cycle.response_complete:  # It was refused before it was whole.
            self._owing, self._patience = self.loop.time(), self.timeout_keep_alive
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong where we know, behind the answers to the whole requests that came before."""
        self._broken, self._owing = self._refusal or msg, None
        answering = self._answering
        if answering is None or answering.response_complete or answering.more_body:
            self._refuse()
        elif self.cycle.more_body:  # It waits in the line, and will never be whole.
            self.pipeline.popleft()

    def on_response_complete(self) -> None:
        """One answer less is owed."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._broken:
            self._refuse()
        elif self._owing is None:
            self._owing, self._patience = self.loop.time(), self.timeout_keep_alive

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self) -> None:
        """Say why, and take for a while what is still on its way: to close at once could reset the answer away."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        text = self._broken.encode("ascii")
        lines = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            text
        )
        self._joining.end(STATUS_LINE[400] + lines + text)
        self._watch.cancel()
        self._watch = self.loop.call_later(_LINGER, self.transport.close)

    def _describe(self) -> None:
        """Put what is asked into the scope."""
        url, scope = httptools.parse_url(self.url), self.scope
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        scope["method"], scope["http_version"] = self.parser.get_method().decode(), self.parser.get_http_version()
        scope["headers"] = list(self.headers)  # Trailers are parsed into the same list, long after the checks.

    def _refused(self) -> str:
        coding = header(self.headers, b"transfer-encoding")
        if self.parser.should_upgrade():  # Its body would be taken for another protocol, or for the next request.
            return "no upgrade is offered here: switch HTTP/2 (h2c) or WebSocket off in the client"
        if self.parser.get_http_version() not in _VERSIONS:
            return "only HTTP/1.1 and HTTP/1.0 are spoken here"
        if coding is not None and coding.lower() != b"chunked":  # Taken apart, "gzip, chunked" would still be gzip.
            return "of all transfer codings only chunked is understood here"
        return ""

    def _look(self) -> None:
        waited = 0.0 if self._owing is None else self.loop.time() - self._owing
        left = self._patience - waited
        if left <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(left, self._look)
