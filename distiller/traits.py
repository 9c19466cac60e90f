"""Owns what a task's exchanges are like: labels, repeats, languages. Must not judge whether they can be learned."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

from distiller.curate import Curation, Recorded, near_duplicate_groups, user_text
from router.slices import language

MOST_LANGUAGES = 8
RARE = 5  # rows: a label with fewer is hardly learned, and tested by next to none


@dataclass(frozen=True, slots=True)
class Balance:
    """The labels of a closed set, over the rows fit to learn from."""

    labels: int
    largest: str
    largest_share: float
    rare: int
    """Labels of fewer than RARE rows."""
    evenness: float
    """Entropy of the labels over its maximum (Pielou 1966): 1 where all are as frequent, 0 for a single one."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """Shares in [0, 1] of the rows that say nothing new."""

    exact: float
    """Of the rows fit to learn from before repeats went: those dropped for the same prompt with the same answer."""
    conflicting: float
    """As `exact`, with another answer."""
    near: float
    """Of the rows that are left: those with an earlier near-duplicate."""


def balance(labels: Sequence[str]) -> Balance | None:
    """None without rows."""
    if not labels:
        return None
    counts = Counter(labels)
    (largest, most), *_ = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shares = [count / len(labels) for count in counts.values()]
    entropy = -sum(share * log(share) for share in shares)
    return Balance(
        labels=len(counts),
        largest=largest,
        largest_share=most / len(labels),
        rare=sum(count < RARE for count in counts.values()),
        evenness=entropy / log(len(counts)) if len(counts) > 1 else 0.0,
    )


def repeats(curation: Curation) -> Repeats:
    """All 0 where nothing was fit to learn from."""
    kept = len(curation.kept)
    exact, conflicting = (curation.dropped.get(reason, 0) for reason in ("exact_duplicate", "conflict"))
    fit = kept + exact + conflicting
    groups = len(set(near_duplicate_groups([user_text(row) for row in curation.kept]).tolist()))
    return Repeats(exact / max(fit, 1), conflicting / max(fit, 1), (kept - groups) / max(kept, 1))


def languages(rows: Sequence[Recorded]) -> Mapping[str, float]:
    """Language of the user's text -> share of the rows, the most frequent first; a light guess (`router.slices`)."""
    counts = Counter(language(user_text(row)) for row in rows)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: count / len(rows) for name, count in ordered[:MOST_LANGUAGES]}
