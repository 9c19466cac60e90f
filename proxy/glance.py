"""Owns the quick look whether a text holds any of many patterns, in one pass over its bytes, whatever their case.

Must not know what the patterns stand for. The pass is Vectorscan's, some 2 GB/s: looking for the same words one after
the other would be most of what a large exchange costs.
"""

from collections.abc import Iterable

import hyperscan


class Glance:
    """Compiled once, in some milliseconds; for one thread at a time."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        """`patterns` are regular expressions as Hyperscan knows them: no look-around, no back references."""
        expressions = list(patterns)
        self._database = hyperscan.Database()
        self._database.compile(
            expressions=expressions,
            ids=[0] * len(expressions),
            elements=len(expressions),
            flags=[hyperscan.HS_FLAG_SINGLEMATCH] * len(expressions),  # Each may say so once.
        )

    def __call__(self, data: bytes | bytearray) -> bool:
        """Whether any pattern is in these bytes."""
        found: list[int] = []
        # Its stub knows no bytearray, which it takes as it is.
        self._database.scan(data, match_event_handler=lambda *match: found.append(0))  # type: ignore[type-var]
        return bool(found)
