"""Owns the learning curve: what would more rows bring? Must not know what is learned, nor how it is scored.

An inverse power law is fitted to mean verdicts at growing numbers of rows n, by bounded least squares:

    score(n) = a - b * n ** -c      a in [0, 1], b >= 0, c in [0.05, 2]

(Cortes, Jackel, Solla, Vapnik & Denker 1994, "Learning curves: asymptotic values and rate of convergence", NIPS 6). So
a fitted curve never falls. Intervals are percentiles over bootstrap resamples of the holdout rows, the same rows at
every n: they know that the holdout is small, not that other training rows would have given other students. Beyond
FARTHEST times the rows there are, nothing is predicted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from proxy.errors import BadInput

T = TypeVar("T")

SHARES = (0.125, 0.25, 0.5, 1.0)
FLATTEST, STEEPEST = 0.05, 2.0  # exponents: below, a plateau and a slope look the same over four points
FARTHEST = 100
RESAMPLES = 200
TRIES = 50  # steps of a fit: a plateau leaves the exponent open, and would be searched for long
LEVEL = 0.9  # of the intervals
WORTH = 0.005  # half a point: a doubling that gains less is not worth recording for


@dataclass(frozen=True, slots=True)
class Measured:
    """The verdicts, each in [0, 1], that one number of training rows got on the holdout, in the holdout's order."""

    rows: int
    verdicts: NDArray[np.float64]

    @property
    def score(self) -> float:
        """The mean verdict."""
        return float(self.verdicts.mean())


@dataclass(frozen=True, slots=True)
class Law:
    """score(n) = ceiling - gap * (n / rows) ** -exponent; `gap` is what is missing to the ceiling at `rows`.

    In the words of the paper: a = ceiling, b = gap * rows ** exponent, c = exponent.
    """

    ceiling: float
    gap: float
    exponent: float
    rows: int

    def at(self, rows: float) -> float:
        """The score expected of so many rows, more than 0; below 0 where the law is stretched to very few."""
        return self.ceiling - self.gap * exp(-self.exponent * log(rows / self.rows))

    def needed(self, target: float) -> float:
        """Rows at which `target` is reached; infinite beyond FARTHEST times the rows there are."""
        if self.gap == 0 or self.at(self.rows) >= target:
            return self.rows if self.at(self.rows) >= target else inf
        if self.ceiling <= target:
            return inf
        times = (log(self.gap) - log(self.ceiling - target)) / self.exponent
        return self.rows * exp(times) if times <= log(FARTHEST) else inf


@dataclass(frozen=True, slots=True)
class Curve:
    """What was measured as (rows, score), the law that fits it, and what follows. Intervals at LEVEL."""

    points: tuple[tuple[int, float], ...]
    law: Law
    target: float
    more: int | None
    """Training rows still to record until the target; 0 where it is reached, None where it will not be."""
    more_interval: tuple[int | None, int | None]
    reached: float
    """Share of the resamples in which the target is ever reached."""
    gain: float
    """What twice the rows are expected to add to the score."""
    gain_interval: tuple[float, float]

    @property
    def words(self) -> str:
        """For people."""
        return f"{self._target_words()}; {self._gain_words()}"

    def _target_words(self) -> str:
        if self.more == 0:
            return f"a score of {self.target:.2f} is reached with what there is"
        low, high = (None if end is None else f"{end:,}" for end in self.more_interval)
        if self.more is None:
            least = f" (at best by {low} more rows)" if low else ""
            return (
                f"a score of {self.target:.2f} is not reached by {FARTHEST} times the rows{least}: "
                f"going on like this levels off at {self.law.ceiling:.2f}"
            )
        return f"a score of {self.target:.2f} needs about {self.more:,} more rows (from {low} to {high or 'never'})"

    def _gain_words(self) -> str:
        said = f"twice the rows gain {100 * self.gain:.1f} points"
        return f"{said}: less than half a point, not worth waiting for" if self.gain < WORTH else said


def measure(
    rows: Sequence[T],
    fit_and_score: Callable[[Sequence[T]], Sequence[float]],
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = (0,),
) -> tuple[Measured, ...]:
    """Fit to growing shares of `rows` and collect the holdout's verdicts, averaged over the seeds.

    Of one seed each share's rows are among the next one's, drawn at random and kept in their order, so the most recent
    are last. All rows are fitted once, as there is nothing to draw. BadInput for fewer than two different numbers.
    """
    sizes = sorted({ceil(share * len(rows)) for share in shares if 0 < share <= 1} - {0})
    if len(sizes) < 2 or not seeds:
        raise BadInput(f"{len(rows)} rows at shares {list(shares)} make no learning curve: record more exchanges")
    orders = [np.random.default_rng(seed).permutation(len(rows)) for seed in seeds]
    found = []
    for size in sizes:
        drawn = orders if size < len(rows) else orders[:1]
        verdicts = [fit_and_score([rows[place] for place in sorted(order[:size].tolist())]) for order in drawn]
        found.append(Measured(size, np.mean(np.asarray(verdicts, dtype=np.float64), axis=0)))
    return tuple(found)


def learning_curve(measured: Sequence[Measured], target: float, seed: int = 0) -> Curve:
    """Fit the law and look ahead to `target`, a mean verdict in (0, 1].

    BadInput for fewer than two points, another holdout at one of them, an empty one, or a target out of range.
    """
    if not 0 < target <= 1:
        raise BadInput(f"a target score lies above 0 and at most at 1, not {target}")
    sizes = {one.verdicts.shape for one in measured}
    if len(measured) < 2 or len(sizes) != 1 or sizes == {(0,)}:
        raise BadInput("a learning curve needs two numbers of rows or more, scored on the same holdout rows")
    points = sorted(measured, key=lambda one: one.rows)
    rows = [one.rows for one in points]
    verdicts = np.stack([one.verdicts for one in points])
    law = fit_law(rows, verdicts.mean(axis=1))
    draw, holdout = np.random.default_rng(seed), verdicts.shape[1]
    drawn = [draw.integers(0, holdout, holdout) for _ in range(RESAMPLES)]
    laws = [fit_law(rows, verdicts[:, places].mean(axis=1), law) for places in drawn]
    needed = [one.needed(target) for one in laws]
    low, high = _interval([_gain(one) for one in laws])
    first, last = _interval(needed)
    return Curve(
        points=tuple((one.rows, one.score) for one in points),
        law=law,
        target=target,
        more=_more(law.needed(target), rows[-1]),
        more_interval=(_more(first, rows[-1]), _more(last, rows[-1])),
        reached=sum(one < inf for one in needed) / RESAMPLES,
        gain=_gain(law),
        gain_interval=(low, high),
    )


def fit_law(rows: Sequence[int], scores: NDArray[np.float64], near: Law | None = None) -> Law:
    """The law closest to `scores`, one for each number of rows, the largest last.

    Searched for from `near`, or from two starts, of which the better one counts.
    """
    ratio = np.log(np.array(rows) / rows[-1])

    def misses(law: NDArray[np.float64]) -> NDArray[np.float64]:
        missed: NDArray[np.float64] = law[0] - law[1] * np.exp(-law[2] * ratio) - scores
        return missed

    def slopes(law: NDArray[np.float64]) -> NDArray[np.float64]:
        power = np.exp(-law[2] * ratio)
        return np.stack([np.ones_like(ratio), -power, law[1] * ratio * power], axis=1)

    least, most = np.array([0.0, 0.0, FLATTEST]), np.array([1.0, 1.0, STEEPEST])
    starts = [(scores.max() + 0.05, 0.05, exponent) for exponent in (0.3, 1.0)]
    if near is not None:
        starts = [(near.ceiling, near.gap, near.exponent)]
    found = [
        least_squares(misses, np.clip(start, least + 1e-3, most - 1e-3), slopes, (least, most), max_nfev=TRIES)
        for start in starts
    ]
    ceiling, gap, exponent = map(float, min(found, key=lambda one: float(one.cost)).x)
    return Law(ceiling, gap, exponent, rows[-1])


def _gain(law: Law) -> float:
    return law.at(2 * law.rows) - law.at(law.rows)


def _more(needed: float, rows: int) -> int | None:
    return None if needed == inf else max(0, ceil(needed - rows))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle LEVEL of the values, by their order, as infinity has no mean."""
    ordered = sorted(values)
    outside = int(len(ordered) * (1 - LEVEL) / 2)
    return ordered[outside], ordered[-1 - outside]
