"""Owns how two answers are compared whose point is one number: the last one that each of them names.

Must not know tasks or settings. A sign, separators of thousands, a currency and per cent are understood: "$1,200.50" is
1200.5, "1.200,50" too, and "12 %" is 0.12. What may be read in two ways is no number and passed over: dates, times,
ranges, fractions, "1,5", and what has letters in it.
"""

import math
import re
from dataclasses import dataclass

TOLERANCE = 1e-6  # relative
_RUN = re.compile(r"[\w.,'\u2019/:+\u2212\u2013\u00a0\u202f-]+")
_GROUPED = re.compile(r"([-+]?)(\d{1,3}(?:[,'\u2019\u00a0\u202f]\d{3})+|\d+)?(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_CONTINENTAL = re.compile(r"([-+]?)(\d{1,3}(?:\.\d{3})+),(\d+)", re.ASCII)
_SIGNS = {"$": "USD", "\u20ac": "EUR", "\u00a3": "GBP", "\u00a5": "JPY"}
_CURRENCIES = {**_SIGNS, **{code: code for code in _SIGNS.values()}}
_BEFORE, _AFTER = "_,:'\u2019\u00a0\u202f", "_.,:'\u2019+-\u2013\u00a0\u202f"  # what may cling to a number
_BESIDE = re.compile(r"(?:per ?cent|USD|EUR|GBP|JPY|[-+\u2212$\u20ac\u00a3\u00a5%\s])*")
_NEAR = 12  # characters around a number in which its currency, sign or per cent stands


@dataclass(frozen=True, slots=True)
class Number:
    """A number with the currency it is said in, "" where none is."""

    value: float
    currency: str


def number_agreement(teacher: str, candidate: str) -> float:
    """1 where both name the same number up to TOLERANCE, and no two currencies; 0 where either names none."""
    wanted, given = last_number(teacher), last_number(candidate)
    if wanted is None or given is None:
        return 0.0
    if wanted.currency and given.currency and wanted.currency != given.currency:
        return 0.0
    return float(math.isclose(wanted.value, given.value, rel_tol=TOLERANCE))


def last_number(text: str) -> Number | None:
    """The last number of a text that can be read in one way only, or None."""
    found = (_read(text, run) for run in reversed(_with_digits(text)))
    return next((number for number in found if number is not None), None)


def is_number(text: str) -> bool:
    """Whether a text is one number and nothing beside it but its currency or per cent."""
    runs = _with_digits(text)
    if len(runs) != 1 or _read(text, runs[0]) is None:
        return False
    return _BESIDE.fullmatch(text[: runs[0].start()] + text[runs[0].end() :]) is not None


def _with_digits(text: str) -> list[re.Match[str]]:
    return [run for run in _RUN.finditer(text) if any(character.isdecimal() for character in run[0])]


def _read(text: str, run: re.Match[str]) -> Number | None:
    digits = run[0].replace("\u2212", "-").rstrip(_AFTER).lstrip(_BEFORE)
    value = _value(digits)
    if value is None:
        return None
    before = text[max(0, run.start() - _NEAR) : run.start()].rstrip()
    after = text[run.end() : run.end() + _NEAR].lstrip()
    left = next((sign for sign in _CURRENCIES if before.endswith(sign)), "")
    right = next((sign for sign in _CURRENCIES if after.startswith(sign)), "")
    if left and before.removesuffix(left).endswith(("-", "\u2212")):
        value = -value
    if after.startswith(("%", "percent", "per cent")):
        value /= 100
    return Number(value, _CURRENCIES.get(left or right, ""))


def _value(digits: str) -> float | None:
    """A finite number, or None."""
    if match := _CONTINENTAL.fullmatch(digits):
        plain = f"{match[1]}{match[2].replace('.', '')}.{match[3]}"
    elif match := _GROUPED.fullmatch(digits):
        plain = re.sub(r"[,'\u2019\u00a0\u202f]", "", digits)
    else:
        return None
    try:
        value = float(plain)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
