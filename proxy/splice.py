"""Owns JSON objects read with their positions, so that one member can be changed and every other byte stays.

Must not know what the members mean, nor whose bytes they are.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# What stands before a value of an object: the brace or comma, the key, the colon.
_BEFORE = r'[ \t\n\r]*%s[ \t\n\r]*("[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*")[ \t\n\r]*:[ \t\n\r]*'
_FIRST = re.compile(_BEFORE % r"\{")
_FURTHER = re.compile(_BEFORE % ",")
_EMPTY = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*\}")
_CLOSE = re.compile(r"[ \t\n\r]*\}")
_OPEN = re.compile(r"\[[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_END = re.compile(r"[ \t\n\r]*\]")

Reader = Callable[[str, int], tuple[Any, int]]
"""Reads the value at a position: what it is, and where it ends. Raises as `object_at`."""
value_at: Reader = json.JSONDecoder().raw_decode
_EVERY: Mapping[str, Reader] = {}


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


def whole_object(text: str, start: int, readers: Mapping[str, Reader] = _EVERY) -> tuple[list[Member], int]:
    """As `object_at`; ValueError also where anything follows the object."""
    members, close = object_at(text, start, readers)
    if text[close + 1 :].strip(" \t\n\r"):
        raise ValueError("more than one JSON value")
    return members, close


def body_object(body: bytes) -> tuple[list[Member], int]:
    """As `whole_object`, of a body in UTF-8, with a mark of that at its start or without; positions are the body's."""
    body.decode()  # Only to refuse what is not UTF-8.
    text = body.decode("latin-1")  # One character a byte.
    return whole_object(text, len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0)


def object_at(text: str, start: int, readers: Mapping[str, Reader] = _EVERY) -> tuple[list[Member], int]:
    """The members of the JSON object at `start`, and where its closing brace is; some keys have a reader of their own.

    Raises ValueError for what is no JSON object, RecursionError where it is nested too deeply.
    """
    members: list[Member] = []
    before, end = _FIRST.match(text, start), start
    while before is not None:
        key = before[1]
        name = value_at(key, 0)[0] if "\\" in key else key[1:-1]
        value, end = readers.get(name, value_at)(text, before.end())
        members.append(Member(name, value, before, end))
        before = _FURTHER.match(text, end)
    close = (_CLOSE if members else _EMPTY).match(text, end)
    if close is None:
        raise ValueError("not a JSON object")
    return members, close.end() - 1


def items_at(text: str, start: int, reader: Reader) -> tuple[list[Any], int]:
    """The items of the JSON array at `start` as `reader` reads them, and where it ends; raises as `object_at`."""
    opened = _OPEN.match(text, start)
    if opened is None:
        raise ValueError("not a JSON array")
    items: list[Any] = []
    end, more = opened.end(), _END.match(text, opened.end()) is None
    while more:
        item, end = reader(text, end)
        items.append(item)
        comma = _NEXT.match(text, end)
        end, more = (comma.end(), True) if comma else (end, False)
    close = _END.match(text, end)
    if close is None:
        raise ValueError("not a JSON array")
    return items, close.end()
