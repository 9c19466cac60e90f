"""Owns what can be expected of a student before any is trained: a cheap classifier learns the earlier rows in its place
and answers the latest ones.

It reads words and characters, not meaning, so it mostly understates what a student will do, most of all on few rows and
many labels. Only answers made of closed parts can be stood in for; of others nothing is known before training. Must not
know the log, money, or what follows.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from distiller.curate import Recorded
from distiller.curve import Curve, learning_curve, measure
from distiller.grams import Vectors, fit, readings, vectorise
from distiller.leaves import Place
from distiller.payback import Figure
from router.coverage import Plan, Threshold, choose_threshold, coverage_at

LEVEL = 0.95  # of the intervals
RESAMPLES = 300
REPEATED = (2, 3, 4, 6, 8)  # times the holdout that are tried when it is too small to show anything

Score = Callable[[Recorded, Mapping[Place, str]], float]
"""(row, the parts of an answer to it) -> verdict in [0, 1]."""


Parts = Mapping[Place, Sequence[str]]
"""Each closed part of the answers, with its value in every one of them."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the stand-in reached on the latest rows; `threshold` is what it could be proposed with, if anything.

    `coverage` is the largest share of the holdout with a mean verdict of at least 1 - margin: in hindsight.
    """

    agreement: Figure
    majority: float
    coverage: Figure
    threshold: Threshold | None
    times: int | None
    """How many times the exchanges let a threshold through, were the others like these; None: not even 8 times."""
    curve: Curve

    @property
    def proof(self) -> Figure:
        """Exchanges of the task, covered or not, until parity could be proven at the threshold."""
        one = self.threshold
        if one is None or one.proof is None:
            return Figure(None, "the stand-in has no threshold that could be proven")
        basis = f"{one.proof:,} covered exchanges that go on like the {one.n} covered rows of the holdout"
        return Figure(round(one.proof / one.coverage), basis)


def outlook(
    train: Sequence[Recorded], holdout: Sequence[Recorded], parts: Parts, score: Score, margin: float, plan: Plan
) -> Outlook:
    """What to expect at `margin`, of the `parts` of the train rows' answers.

    Needs at least 2 train rows, 1 holdout row and 1 part.
    """
    early, late = _vectors(train, holdout)
    found: list[_Answers] = []

    def fit_and_score(places: Sequence[int]) -> Sequence[float]:
        sure, said = _said(early, late, parts, np.array(places))
        verdicts = [score(row, one) for row, one in zip(holdout, said, strict=True)]
        found.append(_Answers(sure, np.array(verdicts)))
        return verdicts

    curve = learning_curve(measure(range(len(train)), fit_and_score), 1 - margin)
    whole = found[-1]  # All rows are fitted last.
    common = {place: _commonest(values) for place, values in parts.items()}
    threshold, times = _proposed(whole, margin, plan)
    return Outlook(
        agreement=_agreement(whole.verdicts),
        majority=float(np.mean([score(row, common) for row in holdout])),
        coverage=_coverage(whole, margin),
        threshold=threshold,
        times=times,
        curve=curve,
    )


def part_agreement(
    train: Sequence[Recorded], holdout: Sequence[Recorded], parts: Parts, held: Parts
) -> dict[Place, Figure]:
    """How often the stand-in is right on each part of the holdout's answers, `held`."""
    early, late = _vectors(train, holdout)
    _, said = _said(early, late, parts, np.arange(len(train)))
    return {
        place: _agreement(np.array([float(one[place] == value) for one, value in zip(said, values, strict=True)]))
        for place, values in held.items()
    }


def wilson(successes: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927, JASA 22(158)); n at least 1."""
    z = float(norm.ppf((1 + level) / 2))
    p, inner = successes / n, z * z / n
    middle = (p + inner / 2) / (1 + inner)
    half = sqrt(p * (1 - p) * inner + inner * inner / 4) / (1 + inner)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class _Answers:
    """How sure the stand-in was of each holdout row, and its verdicts."""

    confidences: NDArray[np.float64]
    verdicts: NDArray[np.float64]


def _vectors(train: Sequence[Recorded], holdout: Sequence[Recorded]) -> tuple[Vectors, Vectors]:
    vectors = vectorise(readings([*train, *holdout]))
    return vectors[: len(train)], vectors[len(train) :]


def _said(
    early: Vectors, late: Vectors, parts: Parts, places: NDArray[np.int64]
) -> tuple[NDArray[np.float64], list[dict[Place, str]]]:
    """Confidences and answers, fitted to the train rows at `places`; an answer is as sure as its least sure part."""
    sure = np.ones(late.shape[0])
    said: list[dict[Place, str]] = [{} for _ in range(late.shape[0])]
    for place, values in parts.items():
        made = fit(early[places], [values[number] for number in places])
        probabilities = made.probabilities(late)
        sure = np.minimum(sure, probabilities.max(axis=1))
        for one, best in zip(said, probabilities.argmax(axis=1), strict=True):
            one[place] = made.labels[best]
    return sure, said


def _commonest(values: Sequence[str]) -> str:
    return min(Counter(values).items(), key=lambda one: (-one[1], one[0]))[0]


def _agreement(verdicts: NDArray[np.float64]) -> Figure:
    mean = float(verdicts.mean())
    if set(verdicts.tolist()) <= {0.0, 1.0}:
        return Figure(mean, f"a stand-in on the latest {verdicts.size} rows", *wilson(verdicts.sum(), verdicts.size))
    means = [float(verdicts[drawn].mean()) for drawn in _draws(verdicts.size)]
    return Figure(mean, f"a stand-in on the latest {verdicts.size} rows", *_middle(means))


def _coverage(found: _Answers, margin: float) -> Figure:
    def at(places: NDArray[np.int64]) -> float:
        return coverage_at(found.confidences[places], found.verdicts[places], 1 - margin)

    size = found.verdicts.size
    basis = f"in hindsight: the surest part of the latest {size} rows that agrees by {1 - margin:.2f}"
    return Figure(at(np.arange(size)), basis, *_middle([at(drawn) for drawn in _draws(size)]))


def _proposed(found: _Answers, margin: float, plan: Plan) -> tuple[Threshold | None, int | None]:
    """What the holdout lets through, and how often it would have to be as large for that."""
    now = choose_threshold(found.confidences, found.verdicts, margin, plan=plan)
    if now is not None:
        return now, 1
    for times in REPEATED:
        if choose_threshold(np.tile(found.confidences, times), np.tile(found.verdicts, times), margin, plan=plan):
            return None, times
    return None, None


def _draws(size: int) -> list[NDArray[np.int64]]:
    """Places of the bootstrap's resamples; the same for the same size."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, size, size) for _ in range(RESAMPLES)]


def _middle(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
