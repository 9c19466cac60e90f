"""Owns the connection to the teacher: one HTTP client per worker that forwards bytes as they came.

Must not parse a body. Hop-by-hop headers (RFC 9110, section 7.6.1) and our own `x-stillroom-*` stay behind.
"""

import io
import os
from collections.abc import Iterable

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from proxy.errors import BadInput
from proxy.settings import TeacherSettings

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_OURS = b"x-stillroom-"
_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
# aiohttp would add these of its own accord; the teacher must see what the client sent and nothing else.
_LARGE = 1 << 20  # bytes; from here on aiohttp wants a file, which it writes piece by piece.
_NO_AUTO = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")

Headers = Iterable[tuple[bytes, bytes]]


class Teacher:
    """Forwards requests to the configured URL; create it inside the running event loop."""

    def __init__(self, settings: TeacherSettings) -> None:
        """Read the key from the environment; BadInput when the setting names a variable that is not set."""
        self._base = settings.url.rstrip("/").removesuffix("/v1")
        self._key = teacher_key(settings)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=65536,
        )

    async def forward(self, method: str, target: str, headers: Headers, body: bytes) -> aiohttp.ClientResponse:
        """Send the request; returns once the response's headers are there. Raises aiohttp.ClientError, TimeoutError."""
        return await self._session.request(
            method,
            URL(self._base + target, encoded=True),
            headers=self._outgoing(headers),
            data=io.BytesIO(body) if len(body) > _LARGE else body or None,
            allow_redirects=False,
            skip_auto_headers=_NO_AUTO,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _outgoing(self, headers: Headers) -> CIMultiDict[str]:
        kept: CIMultiDict[str] = CIMultiDict()
        dropped = _NOT_FORWARDED | named_by_connection(headers)
        for name, value in headers:
            lower = name.lower()
            if lower not in dropped and not lower.startswith(_OURS):
                kept.add(name.decode("latin-1"), _text(value))
        if self._key:
            kept["Authorization"] = f"Bearer {self._key}"
        return kept


def teacher_key(settings: TeacherSettings) -> str:
    """The teacher's key from the environment, or "" where clients bring their own."""
    if not settings.key_env:
        return ""
    try:
        return os.environ[settings.key_env]
    except KeyError:
        raise BadInput(
            f"teacher.key_env names {settings.key_env}, which is not set: export it, or clear the setting "
            "so that clients' own keys are passed through"
        ) from None


def _text(value: bytes) -> str:
    """aiohttp writes header values as UTF-8; so read, they go out as the same bytes. Other bytes are Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Header names that `Connection:` declares hop-by-hop for this message."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def response_headers(raw: Headers) -> list[tuple[bytes, bytes]]:
    """The upstream's headers as they go to the client, less the hop-by-hop ones."""
    raw = list(raw)
    dropped = HOP_BY_HOP | named_by_connection(raw)
    return [(name.lower(), value) for name, value in raw if name.lower() not in dropped]
