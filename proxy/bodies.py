"""Owns how a recorded body becomes text again: base64 as the spool wrote it, then the wire's content encodings.

Must not raise for what came over the wire: a body that does not decode is returned as far as it does.
"""

import base64
import json
import zlib

import brotli
import zstandard


def decoded(body: str, encoding: str, headers: str) -> str:
    """The body as the application meant it; `headers` is the record's JSON list of pairs."""
    if encoding == "utf-8":
        return body
    data = base64.b64decode(body)
    for name, value in json.loads(headers):
        if name.lower() == "content-encoding":
            for coding in reversed(value.lower().split(",")):
                data = _inflate(data, coding.strip())
    return data.decode("utf-8", "replace")


def _inflate(data: bytes, coding: str) -> bytes:
    try:
        if coding in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(wbits=47).decompress(data)  # 47: gzip or zlib, whichever the header says.
        if coding == "br":
            return bytes(brotli.Decompressor().process(data))
        if coding == "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except (zlib.error, brotli.error, zstandard.ZstdError):
        return b""
    return data
