"""Owns how a recorded body becomes text again: base64 as the spool wrote it, then the wire's content encodings.

Must not raise for what came over the wire: a body that does not decode is returned as far as it does.
"""

import base64
import contextlib
import json
import zlib
from collections.abc import Callable

import brotli
import zstandard

MOST_RATIO = 32  # text shrinks to a tenth or less; what unfolds further than this, and a megabyte, is a bomb
_PIECE = 1 << 10  # bytes; of a damaged body, the pieces before the damage are still read.


def decoded(body: str, encoding: str, headers: str) -> str:
    """The body as the application meant it; `headers` is the record's JSON list of pairs."""
    if encoding == "utf-8":
        return body
    data = base64.b64decode(body)
    for name, value in json.loads(headers):
        if name.lower() == "content-encoding":
            data = inflated(data, value)
    return data.decode("utf-8", "replace")


def inflated(data: bytes, codings: str) -> bytes:
    """The bytes before the content codings were applied, as a header names them; a bomb as far as `limit` bytes."""
    limit = (1 << 20) + MOST_RATIO * len(data)
    for coding in reversed(codings.lower().split(",")):
        data = _inflate(data, coding.strip(), limit)
    return data


def _inflate(data: bytes, coding: str, limit: int) -> bytes:
    step: Callable[[bytes, int], bytes]
    if coding in ("gzip", "x-gzip", "deflate"):
        step = zlib.decompressobj(wbits=47).decompress  # 47: gzip or zlib, whichever the header says.
    elif coding == "br":
        step = brotli.Decompressor().process
    elif coding == "zstd":
        reader = zstandard.ZstdDecompressor().stream_reader(data)
        data, step = data[:1], lambda _, most: reader.read(most)
    else:
        return data
    whole = bytearray()
    with contextlib.suppress(zlib.error, brotli.error, zstandard.ZstdError):
        for at in range(0, len(data), _PIECE):
            whole += step(data[at : at + _PIECE], limit - len(whole))
            if len(whole) >= limit:
                break
    return bytes(whole)
