import contextlib
import json
import math
import random
import struct
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.logprobs import UNLIKELY, Position, packed, positions, read, unpacked
from proxy.tokens import load_encoding

TOKENS = st.binary(max_size=6) | st.text(max_size=4).map(str.encode)
LOGPROBS = st.floats(UNLIKELY, 0.0) | st.just(UNLIKELY)
TOPS = st.lists(st.tuples(TOKENS, LOGPROBS), max_size=4).map(tuple)
POSITIONS = st.lists(st.builds(Position, TOKENS, LOGPROBS, TOPS))


def half(logprob: float) -> float:
    (rounded,) = struct.unpack("<e", struct.pack("<e", logprob))
    return float(rounded) if logprob >= -9992.0 else UNLIKELY


def rounded(position: Position) -> Position:
    top = tuple((token, half(logprob)) for token, logprob in position.top)
    return Position(position.token, half(position.logprob), top)


def entry(token: bytes | None, logprob: float, *top: tuple[bytes | None, float]) -> dict[str, Any]:
    """One token as OpenAI spells it."""
    text = "<|end|>" if token is None else token.decode("utf-8", "backslashreplace")
    told = {"token": text, "logprob": logprob, "bytes": None if token is None else list(token)}
    return {**told, "top_logprobs": [entry(*one) for one in top]} if top else told


def answer(*content: dict[str, Any], **choice: Any) -> str:
    told = {"index": 0, "message": {"content": "hm"}, "logprobs": {"content": list(content), "refusal": None}} | choice
    return json.dumps({"choices": [told]})


@given(POSITIONS)
def test_what_was_packed_comes_back_with_the_precision_of_a_half(positions: list[Position]) -> None:
    kept = packed(positions)
    assert unpacked(kept) == tuple(map(rounded, positions))
    assert packed(unpacked(kept)) == kept


def test_many_alternatives_and_long_tokens_come_back_too() -> None:
    top = tuple((b"%d" % number, -1.0) for number in range(70_000))
    positions = (Position(b"x" * 70_000, -0.5, top), Position(b"", UNLIKELY, ()))
    assert unpacked(packed(positions)) == positions


def test_a_token_with_twenty_alternatives_takes_at_most_150_bytes() -> None:
    encoding, draw = load_encoding(), random.Random(1)
    words = [encoding.decode_single_token_bytes(number) for number in range(4000)]
    found = []
    for _ in range(400):
        top = tuple((draw.choice(words), -draw.expovariate(0.2)) for _ in range(20))
        found.append(Position(top[0][0], top[0][1], top))
    kept = packed(found)
    assert len(zstandard.ZstdDecompressor().decompress(kept[1:])) <= 150 * len(found)
    assert len(kept) <= 120 * len(found)


@given(POSITIONS.filter(bool), st.integers(0, 1000), st.integers(1, 255))
def test_what_is_damaged_is_refused_or_makes_no_difference(positions: list[Position], place: int, flip: int) -> None:
    kept = packed(positions)
    damaged = bytearray(kept)
    damaged[place % len(kept)] ^= flip
    with contextlib.suppress(BadInput):
        assert unpacked(bytes(damaged)) == unpacked(kept)  # A bit of zstd's that is of no use.
    with pytest.raises(BadInput):
        unpacked(kept[: place % len(kept)])


def test_what_is_no_packing_or_of_a_newer_one_is_refused() -> None:
    inside = zstandard.ZstdDecompressor().decompress(packed([Position(b"a", -1.0, ())])[1:])
    for wrong in (b"", b"x", inside[:-1], inside + b"x", inside[:4] + b"\xff" * 4 + inside[8:]):
        with pytest.raises(BadInput, match="damaged"):
            unpacked(b"\x01" + zstandard.ZstdCompressor().compress(wrong))
    with pytest.raises(BadInput, match="update"):
        unpacked(b"\x02" + inside)
    with pytest.raises(BadInput, match="no log-probabilities"):
        unpacked(b"")


def test_the_wire_is_read_by_its_bytes() -> None:
    told = [entry(b"\xf0\x9f", -0.25, (b"\xf0\x9f", -0.25), (b"a", -3)), entry(None, -1.5, (None, -1.5), (b".", -2.0))]
    expected = (
        Position(b"\xf0\x9f", -0.25, ((b"\xf0\x9f", -0.25), (b"a", -3.0))),
        Position(b"", -1.5, ((b".", -2.0),)),  # A special token has no bytes, and as an alternative it is left out.
    )
    assert read(answer(*told)) == read(" " + answer(*told)) == expected
    pieces = [answer(told[0]), answer(told[1]), json.dumps({"choices": [], "usage": {}})]
    assert read("".join(f"data: {piece}\n\n" for piece in (*pieces, "[DONE]"))) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (-9999.0, UNLIKELY), (-9999, UNLIKELY), (-1e300, UNLIKELY), (-math.inf, UNLIKELY), (math.nan, UNLIKELY),
        (0, 0.0), (1e-9, 0.0), (-9998.5, -9998.5),
    ],
)  # fmt: skip
def test_what_is_too_low_to_be_told_stays_so_and_nothing_is_more_than_certain(told: float, expected: float) -> None:
    (position,) = read(answer(entry(b"a", told)))
    assert position.logprob == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "no", "data: {", 'data: {"choices":[1]}', '{"choices":[{"logprobs":null}]}', '{"choices":null}', "{}",
        '{"choices":[{"logprobs":{"content":null}}]}', answer(entry(b"a", -1.0), index=1),
        answer(entry(b"a", -1.0), {**entry(b"b", -1.0), "logprob": "low"}), answer({"token": "a", "logprob": -1.0}),
        answer({**entry(b"b", -1.0), "logprob": True}), answer({**entry(b"a", -1.0), "bytes": [256]}),
        answer({**entry(b"a", -1.0), "bytes": 3}), answer({**entry(b"a", -1.0), "top_logprobs": [None]}),
        "[" * 100_000,
    ],
)  # fmt: skip
def test_what_tells_no_probabilities_is_read_as_none(text: str) -> None:
    assert read(text) == ()


@pytest.mark.parametrize("logprobs", [1, [], {"text": []}, {"content": [{}]}, {"content": 1}])
def test_a_piece_of_another_shape_is_an_error_and_null_is_nothing(logprobs: object) -> None:
    assert positions(None) == positions({"content": None}) == positions({"content": []}) == []
    with pytest.raises(ValueError, match="not the log-probabilities"):
        positions(logprobs)
