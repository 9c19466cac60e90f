"""Owns which group a row belongs to: its language, or its teacher where teachers go by something else.

The one place where that is decided, for training and judging alike. Must not know what is done with the groups.
A language is the one recorded with the row, else a light guess (`router.slices.language`), which short texts in Latin
letters often defeat: those are a group of their own, and are not taken for a language.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from distiller.curate import Recorded, user_text
from router.slices import language

LANGUAGE, GUESS, TEACHER = "language", "language (a guess)", "teacher"
UNTOLD = ("Latin script", "(none)")
"""What a guess says where it cannot tell."""
USUAL = "(the usual one)"
LEAST = 0.05  # of the rows; what is guessed less often may be a mistake
# ISO 639-1, as languages are recorded.
_CODES: Mapping[str, str] = MappingProxyType({
    "English": "en", "German": "de", "French": "fr", "Spanish": "es", "Portuguese": "pt", "Italian": "it",
    "Dutch": "nl", "Chinese": "zh", "Japanese": "ja", "Korean": "ko",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Groups:
    """A name for each row, in the order of the rows, and what they are grouped `by`: one of the three above."""

    by: str
    names: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether there are two groups or more; of guessed ones, that are told, and not seen by mistake."""
        if self.by != GUESS:
            return len(set(self.names)) > 1
        counts = Counter(self.names)
        return sum(name not in UNTOLD and count >= LEAST * len(self.names) for name, count in counts.items()) > 1


def groups(rows: Sequence[Recorded]) -> Groups:
    """By language where one is recorded or no row names a teacher; what was recorded without one is guessed there."""
    if any(row.lang for row in rows):
        return Groups(LANGUAGE, tuple(row.lang or _guessed(row) for row in rows))
    if any(row.teacher for row in rows):
        return Groups(TEACHER, tuple(row.teacher or USUAL for row in rows))
    return Groups(GUESS, tuple(_guessed(row) for row in rows))


def _guessed(row: Recorded) -> str:
    found = language(user_text(row))
    return _CODES.get(found, found)
