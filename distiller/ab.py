"""Owns the A/B of two ways of making a student, on the same questions: by how much, how surely, how calibrated.

Must not know what differs between the two, nor what is done with the winner.

The interval of the mean paired difference is a bootstrap (Efron & Tibshirani 1993, "An Introduction to the Bootstrap")
over the differences and one pair more of each extreme at half weight, with one tie, as Agresti & Min 2005 ("Simple
improved confidence intervals for comparing matched proportions", Statistics in Medicine 24) add them: without these a
single pair that differs would give an interval that reaches to no side but its own. The test of no difference is the
exact one of McNemar (1947) where every verdict is 0 or 1, else random flips of the differences' signs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from distiller.generate import Generated
from distiller.proposal import Proposal, mean
from proxy.errors import BadInput
from router.calibration import Reliability, reliability

RESULT = "ab.json"
CONFIDENCE = 0.95
RESAMPLES = 10_000
MOST_LOST = 0.005
"""What the lower bound may lie below zero for the other to be kept: nothing is kept that may cost more."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Two students on the same `n` questions; means of verdicts in [0, 1], `difference` is other - one.

    `lower` and `upper` bound it at CONFIDENCE, two-sided. `won` and `lost` count the questions on which the other is
    better and worse. `p` is two-sided. Reliabilities are None without confidences.
    """

    n: int
    one: float
    other: float
    difference: float
    lower: float
    upper: float
    won: int
    lost: int
    p: float
    test: str
    one_reliability: Reliability | None
    other_reliability: Reliability | None

    @property
    def better(self) -> bool:
        """Whether to keep the other: better on average, and by its bound not worse by more than MOST_LOST."""
        return self.difference > 0 and self.lower > -MOST_LOST


@dataclass(frozen=True, slots=True)
class Trial:
    """Two kinds of student made alike and judged on the same holdout; `other` is `kept`, or `one` is.

    Of each, in this order: the `rows` it learned to answer, its `steps`, and the mean `tokens` of an answer, which is
    what serving pays.
    """

    one: str
    other: str
    seed: int
    rows: tuple[int, int]
    steps: tuple[int, int]
    tokens: tuple[float, float]
    compared: Compared
    kept: bool


def trial(one: Proposal, other: Proposal, seed: int) -> Trial:
    """Two students' holdout answers compared, with raw confidences; `seed` is that of both, and of the resampling."""
    sure = [[answer.confidence for answer in each.made.answers] for each in (one, other)]
    compared = compare(one.verdicts, other.verdicts, seed, *sure)
    return Trial(
        one=one.kind.name,
        other=other.kind.name,
        seed=seed,
        rows=(one.made.rows, other.made.rows),
        steps=(one.made.facts["steps"], other.made.facts["steps"]),
        tokens=(_tokens(one.made.answers), _tokens(other.made.answers)),
        compared=compared,
        kept=compared.better,
    )


def write(folder: Path, trials: Sequence[Trial]) -> None:
    """Put the outcomes into a student's folder, as RESULT; nothing where there are none."""
    if trials:
        (folder / RESULT).write_text(json.dumps([asdict(one) for one in trials], indent=1) + "\n")


def compare(
    one: Sequence[float],
    other: Sequence[float],
    seed: int,
    one_sure: Sequence[float] | None = None,
    other_sure: Sequence[float] | None = None,
) -> Compared:
    """Compare verdicts in [0, 1], paired by place; the same input and seed give the same figures.

    `one_sure` and `other_sure` are confidences in [0, 1]. BadInput where there is nothing, or not as many of each.
    """
    sizes = {len(each) for each in (one, other, one_sure, other_sure) if each is not None}
    if len(sizes) != 1 or sizes == {0}:
        raise BadInput("an A/B needs the verdicts of both on the same questions, at least one")
    verdicts = np.array([one, other], dtype=np.float64)
    if not ((verdicts >= 0) & (verdicts <= 1)).all():
        raise BadInput("verdicts lie in [0, 1]")
    difference = verdicts[1] - verdicts[0]
    random = np.random.default_rng(seed)
    lower, upper = _interval(difference, random)
    p, test = _test(difference, random)
    return Compared(
        n=len(one),
        one=float(verdicts[0].mean()),
        other=float(verdicts[1].mean()),
        difference=float(difference.mean()),
        lower=lower,
        upper=upper,
        won=int((difference > 0).sum()),
        lost=int((difference < 0).sum()),
        p=p,
        test=test,
        one_reliability=None if one_sure is None else reliability(one_sure, one),
        other_reliability=None if other_sure is None else reliability(other_sure, other),
    )


def _tokens(answers: Sequence[Generated]) -> float:
    return mean([len(answer.logprobs) for answer in answers])


def _interval(difference: NDArray[np.float64], random: np.random.Generator) -> tuple[float, float]:
    """Resampling rows is drawing how often each value comes; so many rows as there were, whatever was added."""
    values, counts = np.unique(np.concatenate([difference, [-1.0, 0.0, 1.0]]), return_counts=True)
    weights = counts.astype(np.float64)
    weights[[0, -1]] -= 0.5  # The extremes that were added count half.
    drawn = random.multinomial(len(difference), weights / weights.sum(), size=RESAMPLES)
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(drawn @ values / len(difference), [tail, 1 - tail])
    return float(lower), float(upper)


def _test(difference: NDArray[np.float64], random: np.random.Generator) -> tuple[float, str]:
    differing = difference[difference != 0]
    if not len(differing):
        return 1.0, "none differs"
    if (np.abs(differing) == 1).all():
        return float(binomtest(int((differing > 0).sum()), len(differing)).pvalue), "McNemar, exact"
    seen = abs(differing.sum()) - 1e-9
    flipped = [abs((random.integers(0, 2, len(differing)) * 2 - 1) @ differing) >= seen for _ in range(RESAMPLES)]
    return (1 + sum(map(int, flipped))) / (1 + RESAMPLES), "sign flips"
