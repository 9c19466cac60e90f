"""Owns planted pairs: an answer of the teacher beside a copy of it that is known to be worse, or known to be equal.

They come from the task's own recorded answers, so that they cost nothing and look like what will be judged. Must not
know who judges them.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from proxy.errors import Refused

Message = Mapping[str, Any]
Change = Callable[[str, str, random.Random], str | None]
"""(answer, another exchange's answer, source of randomness) -> the changed copy; None where it cannot be changed so."""

FEWEST = 20  # planted worse pairs: fewer cannot carry a bar of 0.8
_NEGATED = (
    ("is", "is not"), ("are", "are not"), ("was", "was not"), ("can", "cannot"), ("will", "will not"),
    ("should", "should not"), ("has", "does not have"), ("do", "do not"), ("must", "must not"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Planted:
    """One pair: the teacher's `answer` is better than `other` where `worse`, and equal to it else."""

    kind: str
    worse: bool
    request: tuple[Message, ...]
    answer: str
    other: str


def plant(rows: Sequence[tuple[Sequence[Message], str]], per_kind: int, seed: int = 0) -> list[Planted]:
    """Up to `per_kind` pairs of every kind from (request messages, teacher's answer); Refused where it is too little.

    Kinds take turns with the answers, so that pairs share as few of them as possible. An even number of each kind, so
    that a position is as often the better one as not.
    """
    chosen = random.Random(seed)
    rows = [row for row in rows if row[1].strip()]
    chosen.shuffle(rows)
    pairs: list[Planted] = []
    for number, (kind, (worse, change)) in enumerate(_CHANGES.items()):
        found: list[Planted] = []
        for place in range(len(rows)):
            at = (place + number * per_kind) % len(rows)
            request, answer = rows[at]
            other = change(answer, rows[(at + 1) % len(rows)][1], chosen)
            if other is not None and len(found) < per_kind:
                found.append(Planted(kind, worse, tuple(request), answer, other))
        pairs += found[: len(found) // 2 * 2]
    if sum(pair.worse for pair in pairs) < FEWEST:
        raise Refused(
            f"{len(rows)} recorded answers give {sum(pair.worse for pair in pairs)} pairs to try a judge on and "
            f"{FEWEST} are needed: record more of this task"
        )
    return pairs


def _differs(change: Change) -> Change:
    def changed(answer: str, another: str, chosen: random.Random) -> str | None:
        other = change(answer, another, chosen)
        return None if other is None or other.split() == answer.split() else other

    return changed


def _truncated(answer: str, another: str, chosen: random.Random) -> str | None:
    words = answer.split()
    return " ".join(words[: len(words) // 2]) if len(words) >= 6 else None


def _sentence_gone(answer: str, another: str, chosen: random.Random) -> str | None:
    sentences = re.split(r"(?<=[.!?])\s+", answer.strip())
    if len(sentences) < 2:
        return None
    gone = chosen.randrange(len(sentences))
    return " ".join(sentence for place, sentence in enumerate(sentences) if place != gone)


def _of_another(answer: str, another: str, chosen: random.Random) -> str | None:
    return another


def _number_changed(answer: str, another: str, chosen: random.Random) -> str | None:
    numbers = list(re.finditer(r"\d+", answer))
    if not numbers:
        return None
    found = numbers[-1]  # The last one is the likeliest to be a result.
    return f"{answer[: found.start()]}{int(found[0][:15]) + chosen.randint(1, 9)}{answer[found.end() :]}"


def _negated(answer: str, another: str, chosen: random.Random) -> str | None:
    for word, opposite in _NEGATED:
        changed, count = re.subn(rf"\b{word}\b(?! not)", opposite, answer, count=1)
        if count:
            return changed
    return None


def _gibberish(answer: str, another: str, chosen: random.Random) -> str | None:
    letters = list(answer)
    chosen.shuffle(letters)
    return "".join(letters)


def _identical(answer: str, another: str, chosen: random.Random) -> str | None:
    return answer


def _respaced(answer: str, another: str, chosen: random.Random) -> str | None:
    """Spacing and quotation marks say nothing."""
    changed = answer.strip().replace(". ", ".  ").replace('"', "'") + "\n"
    return changed if changed != answer else None


_CHANGES: Mapping[str, tuple[bool, Change]] = MappingProxyType(
    {
        "truncated": (True, _differs(_truncated)),
        "sentence gone": (True, _differs(_sentence_gone)),
        "another's answer": (True, _differs(_of_another)),
        "number changed": (True, _differs(_number_changed)),
        "negated": (True, _differs(_negated)),
        "gibberish": (True, _differs(_gibberish)),
        "identical": (False, _identical),
        "respaced": (False, _respaced),
    }
)
