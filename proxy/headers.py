"""Owns looking into header lists as they came over the wire. Must not know which header means what."""

from collections.abc import Iterable

Headers = Iterable[tuple[bytes, bytes]]


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of the header `name`, given in lower case, or None."""
    for key, value in headers:
        if key == name or key.lower() == name:  # Most come in lower case, from the server.
            return value
    return None


def without(headers: Headers, name: bytes) -> list[tuple[bytes, bytes]]:
    """The headers in their order, less those called `name`, given in lower case."""
    return [(key, value) for key, value in headers if key.lower() != name]
