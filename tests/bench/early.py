"""Owns the table of deciding early, computed from kept answers: what waiting for more of an answer is worth.

A client that streams could be told sooner, were it decided after the first k tokens whether the student answers. After
the first alone, one pass over the prompt has told; after all of them is what the router does. Must not know models.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from statistics import median
from typing import Any

from scipy.stats import rankdata

from router.confidence import confidence
from router.coverage import coverage_at

FIRST = (1, 2, 4, 8)


def early(answers: Mapping[str, Any], verdicts: Sequence[float], formed: Sequence[bool], retention: float) -> str:
    """One line of the table: for each k, the area under the ROC curve and the coverage at the retention."""
    rows = answers["test"]
    length = median(len(row["logprobs"]) for row in rows)
    cells = [answers["set"], f"{length:g}"]
    for first in FIRST:
        sure = [confidence(row["logprobs"][:first]) for row in rows]
        cells.append(_cell(sure, verdicts, coverage_at(sure, verdicts, retention, of=len(rows))))
    sure = [row["confidence"] for row in rows]
    served = coverage_at(list(compress(sure, formed)), list(compress(verdicts, formed)), retention, of=len(rows))
    return f"| {' | '.join([*cells, _cell(sure, verdicts, served)])} |"


def auroc(sure: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right answer is surer than a wrong one, ties half (Mann & Whitney 1947); None without both."""
    many, others = sum(right), len(right) - sum(right)
    if not many or not others:
        return None
    ranks = rankdata(sure)
    return float((sum(compress(ranks, right)) - many * (many + 1) / 2) / (many * others))


def head() -> Iterator[str]:
    """The head of the table."""
    cells = ["set", "tokens, median", *(f"first {k}" for k in FIRST), "whole, checked"]
    yield f"| {' | '.join(cells)} |"
    yield f"|---|{'--:|' * (len(cells) - 1)}"


def _cell(sure: Sequence[float], verdicts: Sequence[float], coverage: float) -> str:
    area = auroc(sure, [verdict == 1 for verdict in verdicts])
    return f"{'-' if area is None else f'{area:.3f}'}, {coverage:.0%}"
