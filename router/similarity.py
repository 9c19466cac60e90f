"""Owns how alike two free texts look: a diagnostic beside a judge's verdicts, shown to people.

Must not enter a verdict, a test or a decision. It cannot tell right from wrong: a changed number or a "not" leaves two
texts all but equal. What it shows is a judge that calls answers equal which have nothing in common, or that has no eye
for what differs. Texts are compared by their pieces of three letters. The packaged base model's token embeddings,
averaged, told the planted pairs of recorded GSM8K answers apart no better, and would have the controller load a model.
"""

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from proxy.log import Log
from router.evaluators import JUDGE
from router.registry import Candidate

NEWEST = 200  # comparisons looked at: to read about, not to prove by
_PIECE = 3
_COMPARED = """
SELECT v.verdict, e.answer, v.answer FROM verdicts v JOIN exchanges e ON e.id = v.exchange
WHERE v.candidate = ? AND v.kind = 'shadow' AND v.covered AND v.verdict IS NOT NULL AND v.error IS NULL
  AND e.tool_calls IS NULL AND trim(e.answer) <> trim(v.answer)
ORDER BY v.id DESC LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Alike:
    """Mean similarity, in [0, 1], of the teacher's answers and the candidate's, by what the judge said of them."""

    judged: int
    good: float | None
    """Where the candidate's was no worse; None where there is no such verdict."""
    worse: float | None


def similarity(one: str, other: str) -> float:
    """Cosine, in [0, 1], of the counts of three-letter pieces; 1 for the same text, case and spacing aside."""
    a, b = _pieces(one), _pieces(other)
    length = sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return min(1.0, sum(n * b[piece] for piece, n in a.items()) / length)


def alike(log: Log, candidate: Candidate) -> Alike | None:
    """Of the newest shadow answers that a judge was asked about; None where no judge decides."""
    if candidate.evaluator != JUDGE:
        return None
    rows = [(verdict, similarity(one, other)) for verdict, one, other in log.query(_COMPARED, [candidate.id, NEWEST])]
    good, worse = ([found for verdict, found in rows if (verdict >= 0.5) is was] for was in (True, False))
    return Alike(len(rows), fmean(good) if good else None, fmean(worse) if worse else None)


def _pieces(text: str) -> Counter[str]:
    """At least one: an empty text is a piece of its own."""
    plain = " ".join(text.casefold().split())
    return Counter(plain[at : at + _PIECE] for at in range(max(1, len(plain) - _PIECE + 1)))
