"""Owns the strictest reading of HTTP/1.1 requests: whatever two servers might understand differently is `Broken`.

An oracle for what a client has sent, and the teacher's stand-in's own ears. Must share no code with what is tested.
"""

import re
from dataclasses import dataclass

# RFC 9112, section 3, allows several spaces. RTSP and ICE are what llhttp takes for HTTP: they end in the same way.
_LINE = re.compile(rb"([A-Z][A-Z-]*) +([\x21-\x7e]+) +(?:HTTP|RTSP|ICE)/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(rb"[0-9]+")
_CHUNK = re.compile(rb"(0*[0-9A-Fa-f]{1,16})(?:;[^\r\n]*)?")


class Broken(ValueError):
    """No request, or one whose end is a matter of opinion."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; names of headers in lower case."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """The whole requests of a byte stream, and what comes after them: nothing, a beginning, or what is broken."""

    requests: tuple[Request, ...]
    rest: bytes
    broken: bool

    @property
    def whole(self) -> bool:
        """Whether nothing comes after them."""
        return not self.rest


def read_all(data: bytes) -> Reading:
    """Everything that was sent over one connection."""
    found: list[Request] = []
    start = 0
    try:
        while taken := take(data, start):
            found.append(taken[0])
            start = taken[1]
    except Broken:
        return Reading(tuple(found), data[start:], True)
    return Reading(tuple(found), data[start:].lstrip(b"\r\n"), False)


def take(data: bytes, start: int = 0) -> tuple[Request, int] | None:
    """The request that begins at `start` and where it ends; None while it is not whole."""
    while data[start : start + 1] in (b"\r", b"\n"):
        start += 1
    end = data.find(b"\r\n\r\n", start)
    if end < 0:
        return None
    method, target, headers = _head(data[start:end])
    sizes = [value for name, value in headers if name == b"content-length"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if sizes or codings != [b"chunked"]:
            raise Broken("framing")
        body = _chunks(data, end + 4)
    elif len(sizes) > 1 or (sizes and not _LENGTH.fullmatch(sizes[0])):
        raise Broken("length")
    else:
        body = _exactly(data, end + 4, int(sizes[0][-19:]) if sizes else 0)
    return None if body is None else (Request(method, target, headers, body[0]), body[1])


def _head(head: bytes) -> tuple[str, str, tuple[tuple[bytes, bytes], ...]]:
    first, *lines = head.split(b"\r\n")
    line = _LINE.fullmatch(first)
    headers = [_HEADER.fullmatch(each) for each in lines]
    if line is None or None in headers:
        raise Broken("head")
    named = tuple((each[1].lower(), each[2].rstrip(b" \t")) for each in headers if each)
    return line[1].decode("ascii"), line[2].decode("ascii"), named


def _exactly(data: bytes, start: int, size: int) -> tuple[bytes, int] | None:
    return (data[start : start + size], start + size) if len(data) >= start + size else None


def _chunks(data: bytes, start: int) -> tuple[bytes, int] | None:
    parts: list[bytes] = []
    while (end := data.find(b"\r\n", start)) >= 0:
        size = _CHUNK.fullmatch(data[start:end])
        if size is None:
            raise Broken("chunk size")
        start = end + 2
        length = int(size[1], 16)
        if not length:
            after = _trailers(data, start)
            return None if after is None else (b"".join(parts), after)
        if len(data) < start + length + 2:
            return None
        if data[start + length : start + length + 2] != b"\r\n":
            raise Broken("chunk end")
        parts.append(data[start : start + length])
        start += length + 2
    return None


def _trailers(data: bytes, start: int) -> int | None:
    while (end := data.find(b"\r\n", start)) >= 0:
        if end == start:
            return end + 2
        if not _HEADER.fullmatch(data[start:end]):
            raise Broken("trailer")
        start = end + 2
    return None
