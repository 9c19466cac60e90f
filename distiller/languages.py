"""Owns how a student did on each language of its task, or on each teacher's part: what it learned of it, and how well.

Must not know how students are made or served. A verdict compares the student with the teacher that answered that row,
so each group is judged against its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distiller.answer_loss import Loss
from distiller.dataset import Dataset
from distiller.proposal import Proposal, fit_to_serve, mean, sureness
from distiller.row_groups import groups
from distiller.row_weights import weigh_rows
from distiller.settings import DistillerSettings
from router.calibration import apply
from router.parity import lower_bound

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Group:
    """One group: its `teachers`, the `rows` to learn from, and what these weigh of all, a share.

    Of the holdout `judged` rows are of the group; `score` is the student's mean verdict there, between `low` and `high`
    at CONFIDENCE, two-sided, for this group alone, whatever the verdicts' distribution (`router.parity`). At the
    proposed threshold it answers the share `coverage` of them, with the mean verdict `agreement`; None where nothing is
    proposed, or covered. `loss` is that of the teacher's answers in nats a token, None where no language model was
    asked.
    """

    name: str
    teachers: tuple[str, ...]
    rows: int
    weight: float
    judged: int
    score: float | None
    low: float
    high: float
    coverage: float | None
    agreement: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Languages:
    """The groups of a task, the one with most rows first, and what they are `by`; no group where there is but one."""

    by: str
    table: tuple[Group, ...]


def languages(data: Dataset, chosen: Proposal, options: DistillerSettings) -> Languages:
    """What the dataset has of each group, and what the student made of it."""
    rows = [*data.train, *data.holdout]
    found = groups(rows)
    if not found.several:
        return Languages(found.by, ())
    names = np.array(found.names)
    told = _Told(data, chosen, options)
    table = [told.group(str(name), np.flatnonzero(names == name).tolist()) for name in np.unique(names)]
    return Languages(found.by, tuple(sorted(table, key=lambda one: (-one.rows, one.name))))


class _Told:
    """What is known of each row: places count through the training rows, and on through the holdout."""

    def __init__(self, data: Dataset, chosen: Proposal, options: DistillerSettings) -> None:
        self._train, self._holdout, self._chosen = data.train, data.holdout, chosen
        weighted = weigh_rows(data.train, data.evaluator, options)
        self._weights = weighted.weights.tolist() if weighted else [1.0] * len(data.train)
        threshold, knots = chosen.threshold, chosen.calibration.knots
        fit = fit_to_serve(data, chosen.made.answers)
        sure = sureness(data, chosen.made.answers)
        self._covered = [
            None if threshold is None else may and apply(knots, one) >= threshold.value
            for may, one in zip(fit, sure, strict=True)
        ]

    def group(self, name: str, places: Sequence[int]) -> Group:
        learned = [place for place in places if place < len(self._train)]
        judged = [place - len(self._train) for place in places if place >= len(self._train)]
        rows = [self._train[place] for place in learned] + [self._holdout[place] for place in judged]
        verdicts = [self._chosen.verdicts[place] for place in judged]
        covered = [self._covered[place] for place in judged]
        low, high = interval(verdicts)
        agreement = [verdict for verdict, one in zip(verdicts, covered, strict=True) if one]
        return Group(
            name=name,
            teachers=tuple(sorted({row.teacher or row.model for row in rows} - {""})),
            rows=len(learned),
            weight=sum(self._weights[place] for place in learned) / len(self._train),
            judged=len(judged),
            score=mean(verdicts) if verdicts else None,
            low=low,
            high=high,
            coverage=sum(map(bool, covered)) / len(covered) if covered and None not in covered else None,
            agreement=mean(agreement) if agreement else None,
            loss=_mean_loss([self._chosen.made.losses[place] for place in judged] if self._chosen.made.losses else []),
        )


def interval(verdicts: Sequence[float]) -> tuple[float, float]:
    """Bounds of the mean of verdicts in [0, 1], at CONFIDENCE, two-sided; (0, 1) of none."""
    if not verdicts:
        return 0.0, 1.0
    tail = (1 - CONFIDENCE) / 2
    return lower_bound(verdicts, tail), 1 - lower_bound([1 - one for one in verdicts], tail)


def _mean_loss(losses: Sequence[Loss | None]) -> float | None:
    known = [one for one in losses if one is not None]
    return sum(one.nats for one in known) / sum(one.tokens for one in known) if known else None
