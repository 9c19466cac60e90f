"""Owns what a check of a set-up says: one thing looked at, how bad it is, and in one line what was found or to do."""

from collections.abc import Sequence
from dataclasses import dataclass

OK, WARN, FIX = "ok", "warn", "fix"


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` is OK, WARN (it works, and probably not as meant) or FIX (something does not work); `detail` one line."""

    what: str
    level: str
    detail: str


def worst(findings: Sequence[Finding]) -> str:
    """The worst level there is; OK where nothing was found."""
    levels = {finding.level for finding in findings}
    return next((level for level in (FIX, WARN) if level in levels), OK)
