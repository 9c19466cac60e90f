"""Owns spans as tags of a text's units: the units of a text, tags for spans, and the likeliest tags back to spans.

A unit is a word, a number, one sign, or one character of a script without spaces. Tag 0 is outside; of `fields` fields
tag 1 + f begins a span of field f and tag 1 + fields + f continues it. Must not know models: it is given scores.
"""

import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distiller.extraction import Span

Unit = tuple[int, int]
"""Characters from (inclusive) and to (exclusive)."""
OUTSIDE = 0
NGRAMS = (1, 2, 3, 4)


def units(text: str) -> list[Unit]:
    """The units of a text in order; white space belongs to none."""
    found: list[Unit] = []
    last = ""
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind in ("letter", "digit") and kind == last:
            found[-1] = (found[-1][0], place + 1)
        elif kind != "space":
            found.append((place, place + 1))
        last = kind
    return found


def tags_of(spans: Sequence[Span], places: Sequence[Unit], fields: int) -> list[int] | None:
    """A tag for each unit at `places`; None where a span begins or ends within a unit, or past the last."""
    starts = {start: index for index, (start, _) in enumerate(places)}
    ends = {end: index for index, (_, end) in enumerate(places)}
    tags = [OUTSIDE] * len(places)
    for span in spans:
        if span.start not in starts or span.end not in ends:
            return None
        first, last = starts[span.start], ends[span.end]
        tags[first : last + 1] = [1 + span.field, *[1 + fields + span.field] * (last - first)]
    return tags


def spans_of(tags: Sequence[int], places: Sequence[Unit], fields: int) -> list[tuple[Span, slice]]:
    """The spans that valid tags mean, each with the units it covers."""
    found: list[tuple[Span, slice]] = []
    for index, tag in enumerate(tags):
        if tag > fields:
            span, covered = found[-1]
            found[-1] = Span(span.start, places[index][1], span.field), slice(covered.start, index + 1)
        elif tag != OUTSIDE:
            found.append((Span(*places[index], tag - 1), slice(index, index + 1)))
    return found


def likeliest(scores: npt.NDArray[np.floating], fields: int) -> list[int]:
    """The valid tags of the highest sum of `scores` [units, 1 + 2 * fields] (log-probabilities).

    A span is continued only by the tag of its own field (Viterbi, "Error bounds for convolutional codes", 1967).
    """
    if not len(scores):
        return []
    total = scores[0].astype(np.float64)
    total[1 + fields :] = -np.inf
    origins = []
    for row in scores[1:]:
        origin = np.full(len(row), total.argmax())
        begun, going = np.arange(1, 1 + fields), np.arange(1 + fields, 1 + 2 * fields)
        origin[going] = np.where(total[begun] >= total[going], begun, going)
        origins.append(origin)
        total = total[origin] + row
    tags = [int(total.argmax())]
    for origin in reversed(origins):
        tags.append(int(origin[tags[-1]]))
    return tags[::-1]


def ngrams(word: str, buckets: int) -> list[int]:
    """Hashes below `buckets` of the character n-grams of a word with its borders marked.

    After Bojanowski et al., "Enriching word vectors with subword information", 2017.
    """
    marked = f"<{word.casefold()}>"
    pieces = {marked[i : i + size] for size in NGRAMS for i in range(len(marked) - size + 1)}
    return sorted(zlib.crc32(piece.encode("utf-8", "replace")) % buckets for piece in pieces - {"<", ">"})


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Lo", "Lm") and unicodedata.east_asian_width(character) in ("W", "F"):
        return "sign"
    if category[0] in "LM":
        return "letter"
    if category[0] == "N":
        return "digit"
    return "space" if category[0] == "Z" or character.isspace() else "sign"
