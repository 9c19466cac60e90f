"""Owns HTTP/1.1 to one origin: kept-alive connections, requests written as bytes, answers handed on as they come.

A general client costs as much as all the rest of a relayed request; this one does only what a relay needs: no
redirects, no cookies, no decompression, no retries of anything that may have been paid for. Parsing is llhttp's.
Must not know what it carries.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

from proxy.errors import BadInput
from proxy.headers import Headers, header

_KEEP_SECONDS = 15.0  # below what servers keep: a connection they are about to close must not be used again
_HELD_BYTES = 1 << 18  # of an answer nobody reads; then reading pauses, and TCP slows the upstream down
_HEAD_BYTES = 1 << 18
_FRAMING = (b"content-length", b"transfer-encoding")  # where an answer ends; without them, with the connection
_JOINED_BYTES = 1 << 16  # a larger body is not copied into one piece with its head


class UpstreamBroke(OSError):
    """The upstream closed the connection too early, or sent what is not HTTP; it had the request by then."""


class UpstreamSilent(TimeoutError):
    """The upstream had the request, and then said nothing for too long."""


class Client:
    """Connections to the origin of `url`; belongs to the event loop it is first used in. Times in seconds."""

    def __init__(self, url: str, connect_timeout: float, read_timeout: float) -> None:
        """BadInput for a URL without http(s) or host."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.netloc.isascii():
            raise BadInput(f"{url!r} is no http:// or https:// URL in ASCII")
        self._host, self._tls = parts.hostname, ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._authority = parts.netloc.rpartition("@")[2].encode("ascii")
        self._connect_timeout, self._read_timeout = connect_timeout, read_timeout
        self._idle: deque[tuple[float, _Connection]] = deque()  # oldest first
        self._open: set[_Connection] = set()

    async def request(self, method: str, target: str, headers: Headers, body: bytes) -> "Response":
        """Send; returns once the answer's head is there. Raises OSError (UpstreamBroke, refused, TLS), TimeoutError.

        Only after UpstreamBroke and UpstreamSilent can the upstream have acted on the request.
        """
        head = [f"{method} {target} HTTP/1.1\r\nHost: ".encode("latin-1"), self._authority, b"\r\n"]
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        if body or method in ("POST", "PUT", "PATCH"):
            head.append(b"Content-Length: %d\r\n" % len(body))
        head.append(b"\r\n")
        connection = self._take() or await self._connect()
        return await connection.exchange(method, b"".join(head), body, self._read_timeout)

    def close(self) -> None:
        """Close every connection, used or not."""
        for connection in list(self._open):
            connection.abort()

    def _take(self) -> "_Connection | None":
        now = time.monotonic()
        while self._idle and now - self._idle[0][0] > _KEEP_SECONDS:
            self._idle.popleft()[1].abort()
        while self._idle:
            connection = self._idle.pop()[1]
            if not connection.closed:
                return connection
        return None

    async def _connect(self) -> "_Connection":
        async with asyncio.timeout(self._connect_timeout):
            name = self._host if self._tls else None
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._keep, self._open.discard),
                self._host,
                self._port,
                ssl=self._tls,
                server_hostname=name,
            )
        self._open.add(connection)
        return connection

    def _keep(self, connection: "_Connection") -> None:
        self._idle.append((time.monotonic(), connection))


class Response:
    """One answer: `status` and `raw_headers` at once, the body as it arrives."""

    deployment = ""  # who gave it, where there are several
    attempts = 1  # requests sent, or tried to send, until it was there

    def __init__(self, connection: "_Connection", status: int, raw_headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """Made by the connection when the head is complete."""
        self.status, self.raw_headers = status, raw_headers
        self._connection = connection
        self._pieces: list[bytes] = []
        self._held = 0
        self._ended = False
        self._error: OSError | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty where there is none."""
        value = header(self.raw_headers, b"content-type") or b""
        return value.partition(b";")[0].strip().lower().decode("latin-1")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives; raises UpstreamBroke when it ends early, UpstreamSilent when it stalls."""
        while True:
            if self._pieces:
                piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                if self._held > _HELD_BYTES and not self._ended:
                    self._connection.resume()
                self._held = 0
                yield piece
            elif self._error is not None:
                raise self._error
            elif self._ended:
                return
            else:
                self._reader = self._connection.loop.create_future()
                await self._reader

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        """Give the answer up: what is still to come is not read, and the connection goes."""
        if not self._ended:
            self._connection.abort()

    def feed(self, piece: bytes) -> bool:
        """Take a piece from the connection; False asks it to pause."""
        self._pieces.append(piece)
        self._held += len(piece)
        self._wake()
        return self._held <= _HELD_BYTES

    def end(self, error: OSError | None = None) -> None:
        """No more pieces."""
        self._ended, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time. The `on_*` methods are called by the parser."""

    def __init__(self, keep: "Callable[[_Connection], None]", gone: "Callable[[_Connection], None]") -> None:
        self.closed = False
        self.loop = asyncio.get_running_loop()  # Asked for each time, it would cost a system call.
        self._keep, self._gone = keep, gone
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None  # outlives an exchange: one for each would cost more
        self._head: asyncio.Future[Response] | None = None  # set while an exchange is under way
        self._response: Response | None = None  # from the end of its head to the end of its body
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._bodyless = self._until_close = self._paused = False
        self._heard = self._patience = 0.0

    async def exchange(self, method: str, head: bytes, body: bytes, read_timeout: float) -> Response:
        """Write one request and wait for the head of its answer."""
        waiting: asyncio.Future[Response] = self.loop.create_future()
        self._head = waiting
        self._bodyless = method == "HEAD"
        self._heard, self._patience = time.monotonic(), read_timeout
        self._timer = self._timer or self.loop.call_later(read_timeout, self._look)
        if len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._head is waiting:  # Else the answer is whole already, and the connection may be the next one's.
                self.abort()
            raise

    def abort(self) -> None:
        """Close at once; an exchange under way fails."""
        self.closed = True
        self._transport.abort()

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self.closed:
            self._paused = False
            self._heard = time.monotonic()
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        if self._head is None:  # Nobody asked.
            self.abort()
            return
        self._heard = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(UpstreamBroke(f"the upstream's answer is not HTTP: {error}"))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._gone(self)
        whole = self._response is not None and self._until_close and exc is None
        self._finish(None if whole else UpstreamBroke(f"the upstream closed the connection{f': {exc}' if exc else ''}"))

    def on_message_begin(self) -> None:
        self._headers, self._head_bytes = [], 0
        if self._head is None:  # A second answer: whose next request would get it?
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _HEAD_BYTES:
            raise UpstreamBroke("its head is too large")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._head is None or self._head.done():
            return  # 100 Continue and its like: the answer itself follows. Or whoever asked is gone.
        headers = tuple(self._headers)
        self._until_close = not any(name.lower() in _FRAMING for name, _ in headers)
        self._response = Response(self, status, headers)
        self._head.set_result(self._response)
        if self._bodyless:  # The parser cannot know, and would wait for what the head announces.
            self._finish()
            self.abort()

    def on_body(self, piece: bytes) -> None:
        if self._response is not None and not self._response.feed(piece) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._response is None:
            return
        reusable = self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()
        # After an error of their own, servers close without having said so.
        reusable = reusable and self._response.status < 500
        self.resume()
        self._finish()
        if reusable and not self.closed:
            self._keep(self)
        else:
            self.abort()

    def _finish(self, error: OSError | None = None) -> None:
        """End the exchange under way, if any; without an error its answer is whole."""
        head, response = self._head, self._response
        self._head = self._response = None
        if head is None:
            return
        if response is not None:
            response.end(error)
        elif error is not None and not head.done():
            head.set_exception(error)

    def _look(self) -> None:
        """Whether the upstream has been silent for too long; not asked for each piece, that would cost a timer each."""
        self._timer = None
        if self._head is None:
            return
        silent = 0.0 if self._paused else time.monotonic() - self._heard
        if silent < self._patience:
            self._timer = self.loop.call_later(self._patience - silent, self._look)
        else:
            self._finish(UpstreamSilent(f"the upstream said nothing for {self._patience:g} s"))
            self.abort()
