"""Owns the teacher's stand-in: canned chat completions over HTTP/1.1, for as little CPU as Python allows.

    python -m tests.bench.upstream PORT

Must not know which proxy asks. It understands what HTTP clients send (Content-Length bodies), and refuses the rest.
"""

import asyncio
import re
import sys
from functools import cache
from typing import cast

import uvloop

from tests.bench import canned

CHUNK_SECONDS = 0.005
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": *true')
_CHUNKS = re.compile(rb'"max_tokens": *(\d+)')
_REFUSED = b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._received = b""
        self._left: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance.

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        while (end := received.find(b"\r\n\r\n")) >= 0:
            head = received[:end]
            if _CHUNKED.search(head):
                self._transport.write(_REFUSED)
                self._transport.close()
                return
            declared = _LENGTH.search(head)
            size = end + 4 + (int(declared[1]) if declared else 0)
            if len(received) < size:
                break
            self._answer(received[end + 4 : size])
            received = received[size:]
        self._received = received

    def _answer(self, body: bytes) -> None:
        if not _STREAM.search(body):
            self._transport.write(_plain())
            return
        wanted = _CHUNKS.search(body)
        self._left = list(_frames(int(wanted[1]) if wanted else 60))
        self._transport.write(_STREAM_HEAD + self._left.pop())
        self._wait()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHUNK_SECONDS, self._next)

    def _next(self) -> None:
        self._transport.write(self._left.pop())
        if self._left:
            self._wait()


@cache
def _plain() -> bytes:
    body = canned.answer()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@cache
def _frames(chunks: int) -> tuple[bytes, ...]:
    """What is written at each step, the last first; `[DONE]` goes with the last chunk."""
    framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in canned.events(chunks)]
    return tuple(reversed([*framed[:-2], framed[-2] + framed[-1] + b"0\r\n\r\n"]))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
