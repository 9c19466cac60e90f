"""Owns JSON objects read with their positions, so that one member can be changed and every other byte stays.

Must not know what the members mean, nor whose bytes they are.
"""

import json
import re
from typing import NamedTuple

# What stands before a value of an object: the brace or comma, the key, the colon.
_BEFORE = r'[ \t\n\r]*%s[ \t\n\r]*("[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*")[ \t\n\r]*:[ \t\n\r]*'
_FIRST = re.compile(_BEFORE % r"\{")
_FURTHER = re.compile(_BEFORE % ",")
_EMPTY = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*\}")
_CLOSE = re.compile(r"[ \t\n\r]*\}")
_value_at = json.JSONDecoder().raw_decode


class Member(NamedTuple):
    """One `key: value` of an object; `before` matched up to the value, `end` is where that ends."""

    key: str
    value: object
    before: re.Match[str]
    end: int

    @property
    def at(self) -> int:
        """Where the value starts."""
        return self.before.end()


def spliced(body: bytes, start: int, end: int, new: bytes) -> bytes:
    """`body` with what stands from `start` to `end` replaced."""
    return b"".join((body[:start], new, body[end:]))


def whole_object(text: str, start: int) -> tuple[list[Member], int]:
    """As `object_at`; ValueError also where anything follows the object."""
    members, close = object_at(text, start)
    if text[close + 1 :].strip(" \t\n\r"):
        raise ValueError("more than one JSON value")
    return members, close


def object_at(text: str, start: int) -> tuple[list[Member], int]:
    """The members of the JSON object at `start`, and where its closing brace is.

    Raises ValueError for what is no JSON object, RecursionError where it is nested too deeply.
    """
    members: list[Member] = []
    before, end = _FIRST.match(text, start), start
    while before is not None:
        key = before[1]
        value, end = _value_at(text, before.end())
        members.append(Member(_value_at(key)[0] if "\\" in key else key[1:-1], value, before, end))
        before = _FURTHER.match(text, end)
    close = (_CLOSE if members else _EMPTY).match(text, end)
    if close is None:
        raise ValueError("not a JSON object")
    return members, close.end() - 1
