"""Owns reading JSON that has one meaning only: what two readers could take differently is refused.

Python's own reader keeps the last of two equal keys and takes NaN, Infinity and 1e999, which JSON has not. Must not
know what the text is for.
"""

import json
import math
from typing import Any, NoReturn

from proxy.errors import BadInput


def read(text: str | bytes) -> Any:
    """The value; BadInput with why it is none, without what was sent: the message goes into a log."""
    try:
        plain = text.decode() if isinstance(text, bytes) else text
        return json.loads(plain, object_pairs_hook=_distinct, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {_why(error)}") from None


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


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
