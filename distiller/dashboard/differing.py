"""Owns the difference of two texts by their words. Must not know whose texts they are, nor how a page marks them up.

Of long texts the beginning is compared, and how much is left out is told: what models answer has no end of its own.
"""

import difflib
import re
from dataclasses import dataclass

LONGEST = 6000  # characters of each text
MOST_WORDS = 1500  # of each: comparing takes time that grows with their product
SAME, GONE, NEW = "same", "gone", "new"
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text that is in both (`same`), only in the first (`gone`), or only in the second (`new`)."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """All pieces in order; `left_out` characters of the two texts together were not compared."""

    pieces: tuple[Piece, ...]
    left_out: int

    @property
    def same(self) -> bool:
        """Whether the two texts are one, as far as they were compared."""
        return all(piece.kind == SAME for piece in self.pieces)


def difference(first: str, second: str) -> Difference:
    """From the first text to the second."""
    one, two = _words(first), _words(second)
    pieces: list[Piece] = []
    for what, start, end, at, until in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if what == "equal":
            pieces.append(Piece(SAME, "".join(one[start:end])))
            continue
        pieces += [Piece(kind, text) for kind, text in _changed(one[start:end], two[at:until]) if text]
    left = len(first) + len(second) - sum(len(word) for words in (one, two) for word in words)
    return Difference(tuple(pieces), left)


def _changed(gone: list[str], new: list[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    return (GONE, "".join(gone)), (NEW, "".join(new))


def _words(text: str) -> list[str]:
    return _WORD.findall(text[:LONGEST])[:MOST_WORDS]
