"""Owns the leak report of a dataset: does anything of the holdout stand in what a student learns from?

Recomputed from the two sides alone, by other means than the split used: similarities are exact, of every pair of a
holdout row and a train row, from one sparse product of their shingle counts; no MinHash, so none is missed. Ids of
exchanges are named, never their texts, as a bundle outlives the exchanges. Must not know models, the log or the split.

    exact           the same user text                                        must be none
    near_duplicate  equal up to case, spacing and final punctuation, or, from LONG_TEXT words on, a Jaccard similarity
                    of the 3-word shingles of at least 0.9                    must be none
    conversation    rows of one conversation on both sides                    must be none
    similar         a similarity of at least 0.7, below 0.9: legitimate where prompts share a form; many of them mean
                    that the holdout says little of inputs unlike those learned
    told            the holdout's answer stands in its own prompt, other than in the instructions: reading it off is no
                    skill, though tasks that extract words do just that
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from distiller.curate import JACCARD, LONG_TEXT, SHINGLE, Recorded, user_text
from proxy.traffic_file import message_text
from router.prompt import INSTRUCTION_ROLES

SIMILAR = 0.7
WORD = re.compile(r"\w+")
EXAMPLES = 5
FILE = "leak_report.json"
_AT_ONCE = 256  # holdout rows compared at a time: bounds the memory


@dataclass(frozen=True, slots=True)
class Overlap:
    """Holdout rows with at least one partner in the train rows, and the first such pairs as (holdout, train) ids."""

    rows: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What was found; `clean` is what must be."""

    train: int
    holdout: int
    exact: Overlap
    near_duplicate: Overlap
    conversation: Overlap
    similar: Overlap
    told: Overlap
    """Both ids of an example are the holdout row's own."""
    in_order: bool
    """No train row is later than any holdout row."""
    compared: int
    """Holdout rows long enough to have a similarity."""

    @property
    def clean(self) -> bool:
        """Whether nothing leaks: no exact, near-duplicate or conversation overlap, and the holdout is later in time."""
        return self.in_order and not (self.exact.rows or self.near_duplicate.rows or self.conversation.rows)

    def write(self, folder: Path) -> Path:
        """Write it as a file of a bundle; returns where."""
        path = folder / FILE
        path.write_text(json.dumps(asdict(self) | {"clean": self.clean}, indent=1) + "\n")
        return path


def leak_report(train: Sequence[Recorded], holdout: Sequence[Recorded]) -> LeakReport:
    """Compare both sides; the order of rows does not matter, but for which examples are named."""
    learned, judging = ([user_text(row) for row in rows] for rows in (train, holdout))
    exact = _equal(judging, learned)
    alike = _merged(_equal(list(map(_plain, judging)), list(map(_plain, learned))), exact)
    near, similar, compared = _similarities(judging, learned)
    near = _merged(alike | {late: early for late, early in near.items() if late not in alike}, exact)
    talks = {row.conversation: place for place, row in reversed(list(enumerate(train))) if row.conversation is not None}
    talked = {late: talks[row.conversation] for late, row in enumerate(holdout) if row.conversation in talks}
    told = {late: row.exchange_id for late, row in enumerate(holdout) if _tells(row)}

    def overlap(pairs: dict[int, int]) -> Overlap:
        return _overlap((holdout[late].exchange_id, train[early].exchange_id) for late, early in sorted(pairs.items()))

    return LeakReport(
        train=len(train),
        holdout=len(holdout),
        exact=overlap(exact),
        near_duplicate=overlap(near),
        conversation=overlap(talked),
        similar=overlap(_merged(similar, exact.keys() | near.keys())),
        told=_overlap((identity, identity) for identity in told.values()),
        in_order=not (train and holdout) or max(row.ts for row in train) <= min(row.ts for row in holdout),
        compared=compared,
    )


def _overlap(pairs: Iterable[tuple[str, str]]) -> Overlap:
    found = list(pairs)
    return Overlap(len(found), tuple(found[:EXAMPLES]))


def _merged(pairs: dict[int, int], without: Iterable[int]) -> dict[int, int]:
    """The pairs of holdout rows that are not named under a graver word already."""
    gone = set(without)
    return {late: early for late, early in pairs.items() if late not in gone}


def _equal(judging: Sequence[str], learned: Sequence[str]) -> dict[int, int]:
    """Place in the holdout -> the first place in the train rows with the same text."""
    first = {text: place for place, text in reversed(list(enumerate(learned)))}
    return {late: first[text] for late, text in enumerate(judging) if text in first}


def _plain(text: str) -> str:
    folded = re.sub(r"\s+", " ", text.casefold()).strip()
    return re.sub(r"[.!? ]+$", "", folded) or folded


def _similarities(judging: Sequence[str], learned: Sequence[str]) -> tuple[dict[int, int], dict[int, int], int]:
    """The most similar train row of each holdout row, where near-duplicate or else similar, and how many were long."""
    numbers: dict[tuple[str, ...], int] = {}
    late, early = ([_runs(text, numbers) for text in texts] for texts in (judging, learned))
    near: dict[int, int] = {}
    similar: dict[int, int] = {}
    right = _matrix(early, len(numbers)).T.tocsr() if early else None
    sizes = np.array([len(runs) for runs in early])
    for start in range(0, len(late) if right is not None else 0, _AT_ONCE):
        some = late[start : start + _AT_ONCE]
        shared = (_matrix(some, len(numbers)) @ right).toarray()
        for place, runs in enumerate(some, start):
            if runs:
                best, value = _best(shared[place - start], len(runs), sizes)
                if value >= SIMILAR:
                    (near if value >= JACCARD else similar)[place] = best
    return near, similar, sum(bool(runs) for runs in late)


def _best(shared: NDArray[np.int64], size: int, sizes: NDArray[np.int64]) -> tuple[int, float]:
    """The train row with the highest Jaccard similarity, the first of equals, and that similarity."""
    ratio = shared / (sizes + size - shared)
    best = int(ratio.argmax())
    return best, float(ratio[best])


def _runs(text: str, numbers: dict[tuple[str, ...], int]) -> list[int]:
    """The distinct shingles of a text as numbers, none of a short one; `numbers` grows by the new ones."""
    words = re.findall(WORD, text.casefold())
    if len(words) < LONG_TEXT:
        return []
    found = {tuple(words[place : place + SHINGLE]) for place in range(len(words) - SHINGLE + 1)}
    return sorted(numbers.setdefault(run, len(numbers)) for run in found)


def _matrix(rows: Sequence[Sequence[int]], width: int) -> csr_matrix:
    """One row a text, with a 1 for each of its shingles."""
    columns = np.array([number for row in rows for number in row], dtype=np.int64)
    ends = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return csr_matrix((np.ones(columns.size, dtype=np.int64), columns, ends), shape=(len(rows), max(width, 1)))


def _tells(row: Recorded) -> bool:
    """Whether the answer stands in the prompt as words of its own."""
    spoken = [message_text(message) or "" for message in row.messages if message["role"] not in INSTRUCTION_ROLES]
    answer = _words(row.answer)
    return bool(answer.strip()) and answer in _words("\n".join(spoken))


def _words(text: str) -> str:
    """The words, each between blanks."""
    return f" {' '.join(re.findall(WORD, text.casefold()))} "
