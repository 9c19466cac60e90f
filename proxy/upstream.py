"""Owns the connection to the teacher: one HTTP client per worker that forwards bytes as they came.

Must not parse a body. Hop-by-hop headers (RFC 9110, section 7.6.1) and our own `x-stillroom-*` stay behind;
so do a client's credentials where the teacher gets a key of ours.
"""

import os
from urllib.parse import urlsplit

from proxy.client import Client, Response
from proxy.errors import BadInput
from proxy.headers import Headers
from proxy.settings import TeacherSettings

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
        b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_OURS = b"x-stillroom-"
_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})
# Of a client's account with another provider.
_ABOUT_CLIENTS = frozenset({b"cookie", b"openai-organization", b"openai-project", b"x-goog-api-key"})
_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}


class Teacher:
    """Forwards requests to the configured URL; create it inside the running event loop."""

    def __init__(self, settings: TeacherSettings, place: str = "teacher", client_keys: bool = True) -> None:
        """Read the key from the environment; BadInput when the setting, at `place`, names a variable that is not set.

        Without `client_keys`, nothing that clients may sign in with goes there, whether there is a key of ours or not.
        """
        url = urlsplit(settings.url.rstrip("/").removesuffix("/v1"))
        self._prefix = url.path
        self._key = teacher_key(settings, place)
        dropped = _CREDENTIALS if self._key else frozenset()
        self._not_forwarded = _NOT_FORWARDED | (dropped if client_keys else _CREDENTIALS | _ABOUT_CLIENTS)
        self._client = Client(settings.url, settings.connect_timeout, settings.read_timeout)

    async def forward(self, method: str, target: str, headers: Headers, body: bytes) -> Response:
        """Send the request; returns once the response's headers are there. Raises OSError, TimeoutError."""
        return await self._client.request(method, self._prefix + target, self._outgoing(headers), body)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _outgoing(self, headers: Headers) -> Headers:
        dropped = _and(self._not_forwarded, named_by_connection(headers))
        kept = [
            (name, value)
            for name, value in headers
            if (lower := name.lower()) not in dropped and not lower.startswith(_OURS)
        ]
        if not self._key:
            return kept
        own = (b"Authorization", b"Bearer " + self._key.encode())
        return [own, *kept]


def teacher_key(settings: TeacherSettings, place: str = "teacher") -> str:
    """The teacher's key from the environment, or "" where there is none, and clients may bring their own."""
    if not settings.key_env:
        return ""
    key = os.environ.get(settings.key_env, "")
    if not key:  # Set but empty, it would let clients' own keys through.
        raise BadInput(
            f"{place}.key_env names {settings.key_env}, which is not set: export it, or clear the setting "
            + ("so that clients' own keys are passed through" if place == "teacher" else "where it needs no key")
        )
    if not key.isascii() or not key.isprintable():
        raise BadInput(f"{settings.key_env} holds characters that no key has: a line break at its end, perhaps")
    return key


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Header names that `Connection:` declares hop-by-hop for this message."""
    values = [value for name, value in headers if name == b"connection" or name.lower() == b"connection"]
    if not values:
        return frozenset()
    return frozenset([token.strip().lower() for value in values for token in value.split(b",")])


def response_headers(raw: Headers) -> list[tuple[bytes, bytes]]:
    """The upstream's headers as they go to the client, less the hop-by-hop ones."""
    lower = [(name.lower(), value) for name, value in raw]
    dropped = _and(HOP_BY_HOP, named_by_connection(lower))
    return [field for field in lower if field[0] not in dropped]


def _and(dropped: frozenset[bytes], more: frozenset[bytes]) -> frozenset[bytes]:
    return dropped if more <= dropped else dropped | more
