"""Owns a teacher's log-probabilities, token by token: how they are read from the wire, and how they are kept.

Must not know why they were asked for, nor what is learned from them. Tokens are their bytes and nothing else: their
texts are escaped, and their numbers are the teacher's own.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from proxy.errors import BadInput

UNLIKELY = -9999.0
"""What stands for every log-probability that is too low to be told, or is none; OpenAI's own word for it."""
_VERSION = 1
_HEAD = struct.Struct("<BIII")  # whether numbers are wide; positions, alternatives and distinct tokens
_WIDE = 1 << 16
_LOWEST_HALF = -9992.0  # the float16 just above UNLIKELY
_SHAPE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer: its bytes, its log-probability (nats), and the likeliest tokens in its place, itself
    mostly among them.

    A special token, which is no part of the text, has no bytes; as an alternative it is left out, so that its
    probability is part of what is unknown. UNLIKELY stays what it is.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


def read(answer: str) -> tuple[Position, ...]:
    """The positions of the first choice of an answer's body, or of its stream; none where it tells none.

    Never raises for what a server sent: what is not of the shape of OpenAI's tells none.
    """
    if answer.lstrip().startswith("{"):
        bodies = [answer]
    else:
        bodies = [line[5:] for line in answer.split("\n") if line.startswith("data:") and line[5:].strip() != "[DONE]"]
    found: list[Position] = []
    try:
        for body in bodies:
            for choice in json.loads(body).get("choices") or ():
                if choice.get("index", 0) == 0:
                    found += positions(choice.get("logprobs"))
    except _SHAPE_ERRORS:
        return ()
    return tuple(found)


def positions(logprobs: object) -> list[Position]:
    """What the `logprobs` of one choice, or of a piece of it, says of the text's tokens; for null nothing.

    ValueError for what is not of the shape of OpenAI's. Where one token is not as it should be, whose bytes the others
    are cannot be told.
    """
    try:
        content = None if logprobs is None else logprobs["content"]  # type: ignore[index]
        return [
            Position(_bytes(entry) or b"", _number(entry), tuple(_alternatives(entry.get("top_logprobs") or ())))
            for entry in content or ()
        ]
    except _SHAPE_ERRORS:
        raise ValueError("not the log-probabilities of an answer's tokens") from None


def _alternatives(entries: Iterable[Mapping[str, Any]]) -> Iterable[tuple[bytes, float]]:
    for entry in entries:
        token = _bytes(entry)
        if token is not None:
            yield token, _number(entry)


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    spelled = entry["bytes"]
    if spelled is None:
        return None
    if not isinstance(spelled, list):
        raise TypeError("bytes are a list of numbers")
    return bytes(spelled)


def _number(entry: Mapping[str, Any]) -> float:
    value = entry["logprob"]
    if type(value) is not float and type(value) is not int:
        raise TypeError("a log-probability is a number")
    return min(float(value), 0.0) if value > UNLIKELY else UNLIKELY  # NaN is not greater, either.


def packed(positions: Sequence[Position]) -> bytes:
    """The positions in some 140 bytes each before they are compressed; log-probabilities are rounded to float16.

    A byte for the version, then zstd's frame of: head, number of alternatives of each position, length of each
    distinct token, which token each is (those of the text, then the alternatives), log-probabilities in the same
    order, and the distinct tokens. All little-endian.
    """
    top = [alternative for position in positions for alternative in position.top]
    tokens = dict.fromkeys([*(position.token for position in positions), *(token for token, _ in top)])
    numbers = {token: number for number, token in enumerate(tokens)}
    integers = [len(position.top) for position in positions]
    integers += map(len, numbers)
    integers += [numbers[position.token] for position in positions]
    integers += [numbers[token] for token, _ in top]
    floats = [_half(position.logprob) for position in positions] + [_half(logprob) for _, logprob in top]
    wide = max(integers, default=0) >= _WIDE
    parts = (
        _HEAD.pack(wide, len(positions), len(top), len(numbers)),
        struct.pack(f"<{len(integers)}{'I' if wide else 'H'}", *integers),
        struct.pack(f"<{len(floats)}e", *floats),
        *numbers,
    )
    return bytes((_VERSION,)) + zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(parts))


def unpacked(kept: bytes) -> tuple[Position, ...]:
    """What was `packed`; BadInput for what never was, was damaged, or is of a newer Stillroom."""
    if not kept or kept[0] == 0:
        raise BadInput("these are no log-probabilities that Stillroom kept")
    if kept[0] > _VERSION:
        raise BadInput("log-probabilities were kept by a newer Stillroom: update this one")
    whole = zstandard.ZstdDecompressor().decompressobj()  # It does not reserve what a damaged head asks for.
    try:
        data = whole.decompress(kept[1:])
        if not whole.eof or whole.unused_data:
            raise ValueError("not one whole frame")
        return _unpacked(data)
    except (zstandard.ZstdError, struct.error, IndexError, ValueError):
        raise BadInput("kept log-probabilities are damaged: leave their exchange out") from None


def _unpacked(data: bytes) -> tuple[Position, ...]:
    wide, length, alternatives, distinct = _HEAD.unpack_from(data)
    both, at = length + alternatives, _HEAD.size
    layout = struct.Struct(f"<{length + distinct + both}{'I' if wide else 'H'}")
    integers = layout.unpack_from(data, at)
    logprobs = [_whole(half) for half in struct.unpack_from(f"<{both}e", data, at + layout.size)]
    at += layout.size + 2 * both
    tokens: list[bytes] = []
    for size in integers[length : length + distinct]:
        tokens.append(data[at : at + size])
        at += size
    if at != len(data):
        raise ValueError("not as long as it says")
    which = [tokens[number] for number in integers[length + distinct :]]
    found, start = [], length
    for place, count in enumerate(integers[:length]):
        end = start + count
        top = tuple(zip(which[start:end], logprobs[start:end], strict=True))
        found.append(Position(which[place], logprobs[place], top))
        start = end
    return tuple(found)


def _half(logprob: float) -> float:
    """As it is packed: float16 has no -9999, but it has an infinity."""
    return logprob if logprob >= _LOWEST_HALF else -math.inf


def _whole(half: float) -> float:
    return max(half, UNLIKELY)
