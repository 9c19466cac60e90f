"""Owns an upstream's answer as the relay passes it on, and reading one to its end before it is.

Must not know who asked, nor what the answer means.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from proxy.bodies import inflated
from proxy.headers import header


class UpstreamResponse(Protocol):
    """What the relay needs of an answer."""

    @property
    def status(self) -> int: ...  # noqa: D102

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]: ...  # noqa: D102

    @property
    def content_type(self) -> str: ...  # noqa: D102

    @property
    def deployment(self) -> str: ...  # noqa: D102

    @property
    def attempts(self) -> int: ...  # noqa: D102

    def pieces(self) -> AsyncIterator[bytes]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Held:
    """An answer that was read to its end before it is passed on; `error` is what broke it off there."""

    status: int
    raw_headers: tuple[tuple[bytes, bytes], ...]
    content_type: str
    deployment: str
    attempts: int
    body: bytes
    error: OSError | None = None

    @property
    def plain(self) -> bytes:
        """The body without its content coding."""
        coding = header(self.raw_headers, b"content-encoding")
        return self.body if coding is None else inflated(self.body, coding.decode("latin-1"))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, in one piece; then the error, if there was one."""
        if self.body:
            yield self.body
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Nothing is held open."""


async def held(upstream: UpstreamResponse) -> Held:
    """Read to its end, and closed whatever happens: for answers that are short, or have to be seen whole."""
    body, error = bytearray(), None
    try:
        async for piece in upstream.pieces():
            body += piece
    except OSError as broken:
        error = broken
    finally:
        upstream.close()
    about = upstream.status, upstream.raw_headers, upstream.content_type, upstream.deployment, upstream.attempts
    return Held(*about, bytes(body), error)
