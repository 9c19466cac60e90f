"""Owns a teacher's stand-in that numbers every request it hears and puts the number on its answer.

Must not know who asks. It reads as strictly as `tests.strict` does, and remembers what it heard, and what it could
not read.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from tests.strict import Broken, Request, take

MARK = "x-upstream"
_STREAM = re.compile(rb'"stream": ?true')
_STATUS = {7: 500, 13: 429, 21: 400, 29: 404, 35: 503}  # by the last digits of the number, so that all kinds come
_SECONDS = 0.002  # between two halves of a stream


def fingerprint(method: str, target: str, body: bytes) -> bytes:
    """What makes a request the same as another."""
    return hashlib.blake2b(f"{method} {target}\n".encode() + body, digest_size=16).digest()


@dataclass(slots=True)
class Heard:
    """What arrived, in order: fingerprints, the beginnings of the texts, and what was no request."""

    fingerprints: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)

    def add(self, request: Request) -> int:
        """Number a request."""
        self.fingerprints.append(fingerprint(request.method, request.target, request.body))
        self.texts.append(f"{request.method} {request.target[:200]} {request.body[:200]!r}")
        return len(self.fingerprints) - 1


def is_stream(body: bytes) -> bool:
    """Whether the answer to this request is a stream."""
    return _STREAM.search(body) is not None


def status(number: int, streamed: bool) -> int:
    """The status of the answer with this number."""
    return 200 if streamed else _STATUS.get(number % 100, 200)


def answer(number: int, streamed: bool) -> bytes:
    """The body of the answer with this number."""
    if not streamed:
        return b'{"number":%d,"text":"%b"}' % (number, b"word " * (number % 300))
    event = b'data: {"number":%d,"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n' % number
    return event * 3 + b'data: {"choices":[],"usage":{"total_tokens":9}}\n\ndata: [DONE]\n\n'


@asynccontextmanager
async def marked_upstream() -> AsyncIterator[tuple[int, Heard]]:
    """Serve on a free port, in this loop; yields the port and what is heard."""
    heard = Heard()
    server = await asyncio.get_running_loop().create_server(partial(_Upstream, heard), "127.0.0.1", 0, backlog=1024)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


class _Upstream(asyncio.Protocol):
    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while taken := take(bytes(self._received)):
                del self._received[: taken[1]]
                self._answer(taken[0], self._heard.add(taken[0]))
        except Broken:
            self._heard.broken.append(bytes(self._received))
            self._transport.abort()

    def _answer(self, request: Request, number: int) -> None:
        streamed = is_stream(request.body)
        body = answer(number, streamed)
        kind = "text/event-stream" if streamed else "application/json"
        head = f"HTTP/1.1 {status(number, streamed)} Whatever\r\n{MARK}: {number}\r\nContent-Type: {kind}\r\n"
        if request.method == "HEAD" or not (streamed or number % 5 == 0):
            head += f"Content-Length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + (b"" if request.method == "HEAD" else body))
            return
        self._transport.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        half = len(body) // 2
        self._chunk(body[:half])
        asyncio.get_running_loop().call_later(_SECONDS, self._end, body[half:])

    def _end(self, rest: bytes) -> None:
        if self._transport.is_closing():  # The proxy's client hung up.
            return
        self._chunk(rest)
        self._transport.write(b"0\r\n\r\n")

    def _chunk(self, piece: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
