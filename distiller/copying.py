"""Owns where copied values stand in a text: the place of each, none overlapping another.

Must not know answers, fields or models.
"""

import unicodedata
from collections.abc import Iterator, Sequence


def stands(text: str, value: str) -> bool:
    """Whether the value stands in the text as whole words, exactly as written."""
    return any(_whole(text, start, start + len(value)) for start in _starts(text, value))


def place(text: str, values: Sequence[str]) -> list[int] | None:
    """The start of each value in the text, in their order; None where one does not stand there free of the others.

    The rarest are placed first, then the longest. Of several places whole words are preferred to parts of words, then
    those that keep the order of the values, then the leftmost.
    """
    found = [_best_starts(text, value) for value in values]
    placed: dict[int, int] = {}
    for index in sorted(range(len(values)), key=lambda i: (len(found[i]), -len(values[i]), i)):
        taken = [(start, start + len(values[other])) for other, start in placed.items()]
        size = len(values[index])
        free = [start for start in found[index] if all(start + size <= a or b <= start for a, b in taken)]
        if not free:
            return None
        after = max((start for other, start in placed.items() if other < index), default=-1)
        before = min((start for other, start in placed.items() if other > index), default=len(text) + 1)
        placed[index] = next((start for start in free if after < start < before), free[0])
    return [placed[index] for index in range(len(values))]


def _best_starts(text: str, value: str) -> list[int]:
    """Whole words where there are any, else everything."""
    starts = list(_starts(text, value))
    return [start for start in starts if _whole(text, start, start + len(value))] or starts


def _starts(text: str, value: str) -> Iterator[int]:
    start = text.find(value) if value else -1
    while start >= 0:
        yield start
        start = text.find(value, start + 1)


def _whole(text: str, start: int, end: int) -> bool:
    return not (_inside_word(text, start) or _inside_word(text, end))


def _inside_word(text: str, border: int) -> bool:
    """Whether the border before the character at `border` cuts a word. Letters without case may stand alone.

    Chinese, Japanese and Thai write no spaces, Arabic and Hebrew join small words to the next one.
    """
    if not 0 < border < len(text):
        return False
    left, right = text[border - 1], text[border]
    caseless = "Lo" in (unicodedata.category(left), unicodedata.category(right))
    return left.isalnum() and right.isalnum() and not caseless
