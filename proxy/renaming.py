"""Owns asking for another model than a request names: one member of the body changes by a splice, no other byte.

Must not know who is asked instead of whom, nor why.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from proxy.splice import body_object, spliced


class Renamed(NamedTuple):
    """The body with another model's name, that name, and the one it had."""

    body: bytes
    model: str
    asked: str


def renamed(body: bytes, instead: Callable[[str], str | None]) -> Renamed | None:
    """The request with what `instead` gives for its model; None where that is nothing, or no model can be read.

    Of a key given twice the last counts, as for JSON parsers.
    """
    try:
        members, _ = body_object(body)
    except (ValueError, RecursionError):
        return None
    asked = {member.key: member for member in members}.get("model")
    if asked is None or not isinstance(asked.value, str):
        return None
    model = instead(asked.value)
    if model is None:
        return None
    return Renamed(spliced(body, asked.at, asked.end, json.dumps(model).encode()), model, asked.value)
