"""Owns reading JSON that has one meaning only: what two readers could take differently is refused.

Python's own reader keeps the last of two equal keys and takes NaN, Infinity and 1e999, which JSON has not. Must not
know what the text is for.
"""

import json
import math
from typing import Any, NoReturn


def read(text: str) -> Any:
    """The value; ValueError, which repeats no string of the text, or RecursionError where it nests too deeply."""
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number, parse_float=_finite)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value
