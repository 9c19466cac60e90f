import base64
import gzip
import json
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.bodies import decoded, inflated

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
}
LONG = "".join(f"{number} bottles, grün; " for number in range(20_000))


def recorded(data: bytes, coding: str | None) -> tuple[str, str, str]:
    headers = [["Content-Type", "text/plain"], *([["Content-Encoding", coding]] if coding else [])]
    return base64.b64encode(data).decode(), "base64", json.dumps(headers)


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("text", ["", "grün\0", LONG])
def test_every_coding_is_undone(coding: str, text: str) -> None:
    assert decoded(*recorded(PACK[coding](text.encode()), coding.upper())) == text


def test_codings_are_undone_in_reverse() -> None:
    assert decoded(*recorded(brotli.compress(gzip.compress(b"hi")), "gzip, br")) == "hi"


def test_text_is_taken_as_it_is() -> None:
    assert decoded("grün", "utf-8", '[["content-encoding", "gzip"]]') == "grün"


def test_an_unknown_coding_is_left_and_what_is_no_text_is_marked() -> None:
    assert decoded(*recorded(b"a\xffb", "snappy")) == decoded(*recorded(b"a\xffb", None)) == "a\ufffdb"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_cut_body_is_read_up_to_the_cut(coding: str) -> None:
    packed = PACK[coding](LONG.encode())
    text = decoded(*recorded(packed[: len(packed) - 8], coding))
    # Brotli and zstd give nothing of a block before it is complete.
    assert LONG.startswith(text.rstrip("\ufffd"))
    assert len(text) > 1000 or coding in ("br", "zstd")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_is_not_unpacked(coding: str) -> None:
    bomb = PACK[coding](bytes(64 << 20))
    assert 1 << 20 <= len(inflated(bomb, coding)) < 8 << 20
    assert len(inflated(gzip.compress(gzip.compress(bytes(64 << 20))), "gzip, gzip")) < 8 << 20


def test_a_damaged_body_is_read_up_to_the_damage() -> None:
    packed = gzip.compress(LONG.encode())
    text = decoded(*recorded(packed[:-8] + bytes(8), "gzip"))  # The checksum at the end does not fit.
    assert len(text) > 1000
    assert LONG.startswith(text)


@given(data=st.binary(max_size=300), coding=st.sampled_from(list(PACK)))
def test_nothing_from_the_wire_raises(data: bytes, coding: str) -> None:
    for body in (data, PACK[coding](data)[:-3] + data):
        assert isinstance(decoded(*recorded(body, coding)), str)
