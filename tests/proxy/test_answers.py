import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest

from proxy.answers import Held, held
from proxy.client import UpstreamBroke


class Answer:
    """An upstream's answer that comes in pieces, and may break off."""

    def __init__(self, *pieces: bytes, error: BaseException | None = None) -> None:
        self.status, self.raw_headers, self.content_type = 200, ((b"X", b"1"),), "application/json"
        self.deployment, self.attempts, self.closed = "here", 2, 0
        self._pieces, self._error = pieces, error

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


async def all_of(answer: Held) -> bytes:
    return b"".join([piece async for piece in answer.pieces()])


def test_what_is_held_is_the_answer_and_the_upstream_is_closed() -> None:
    upstream = Answer(b'{"a"', b":1}")
    found = asyncio.run(held(upstream))
    assert found == Held(200, ((b"X", b"1"),), "application/json", "here", 2, b'{"a":1}')
    assert (asyncio.run(all_of(found)), found.plain, upstream.closed) == (b'{"a":1}', b'{"a":1}', 1)


def test_what_broke_off_breaks_off_again_behind_what_came() -> None:
    found = asyncio.run(held(Answer(b"half", error=UpstreamBroke("gone"))))
    assert found.body == b"half"
    with pytest.raises(UpstreamBroke, match="gone"):
        asyncio.run(all_of(found))


def test_whoever_gives_up_closes_the_upstream_too() -> None:
    upstream = Answer(b"half", error=asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(held(upstream))
    assert upstream.closed == 1


def test_what_is_compressed_is_plain_too() -> None:
    coded = Held(404, ((b"Content-Encoding", b"gzip"),), "text/plain", "", 1, gzip.compress(b"no logprobs"))
    assert coded.plain == b"no logprobs"
