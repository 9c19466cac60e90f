"""Owns the watch after promotion: whether the mean verdict has fallen below the bar, and since when.

It must not know what a verdict compared, nor what follows from a drift.

A bound on the whole history is slow to see a change: a thousand good verdicts stand against the first bad ones. An
e-detector (Shin, Ramdas & Rinaldo 2024, "E-detectors: a nonparametric framework for sequential change detection",
NEJSDS 2(2)) opens a new bet with every verdict and adds up the wealth of all of them, as Shiryaev and Roberts did with
likelihood ratios. Each bets that the mean is below the bar, as `router.parity` does for the other side, so that its
wealth does not grow on average while the mean is at or above it; the sum then grows by at most 1 a verdict. So it
reaches `every` after that many verdicts at the earliest on average, and within n verdicts with probability at most
n / every: at most one false alarm in `every` verdicts, however often it is looked at and whatever the verdicts' law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import log

import numpy as np
from numpy.typing import NDArray

from proxy.errors import BadInput

Combine = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

FALSE_ALARM_EVERY = 10_000
"""Verdicts to one false alarm, at most, of a candidate that stays exactly at the bar; far rarer above it."""

BETS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the wealth that are bet, evenly mixed: the best is (bar - mean) / bar, these serve falls of 2 to 40 %."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What n verdicts say about "the mean is still at least the bar"."""

    n: int
    bar: float
    found: bool
    at: int | None
    """Verdicts until the alarm."""
    since: int | None
    """Verdicts from the most likely start of the change up to the alarm, both included."""
    recent: float | None
    """Their mean."""


def drifted(verdicts: Sequence[float] | NDArray[np.float64], bar: float, every: int = FALSE_ALARM_EVERY) -> Drift:
    """Look for a fall of the mean verdict below `bar` anywhere in the row; an alarm once raised stands.

    `every` is the average number of verdicts to a false alarm. BadInput for verdicts outside [0, 1], a bar outside
    (0, 1) or `every` below 1.
    """
    x = np.asarray(verdicts, dtype=np.float64)
    if x.ndim != 1 or not ((x >= 0) & (x <= 1)).all():
        raise BadInput("verdicts must be one row of numbers in [0, 1]: check what the evaluator returned")
    if not (0 < bar < 1 and every >= 1):
        raise BadInput(f"the bar must lie between 0 and 1 and `every` be at least 1, not {bar} and {every}")
    alarms = np.flatnonzero(log_detector(x, bar) >= log(every))
    if not alarms.size:
        return Drift(x.size, bar, False, None, None, None)
    at = int(alarms[0]) + 1
    start = int(_logs(x[:at], bar, lambda wealth, before: wealth[-1] - before).argmax())
    return Drift(x.size, bar, True, at, at - start, float(x[start:at].mean()))


def log_detector(verdicts: NDArray[np.float64], bar: float) -> NDArray[np.float64]:
    """Log of the sum of all bets' wealths after each verdict; shape (..., n) as given."""
    return _logs(verdicts, bar, lambda wealth, before: wealth + np.logaddexp.accumulate(-before, axis=-1))


def _logs(x: NDArray[np.float64], bar: float, combine: Combine) -> NDArray[np.float64]:
    """The mixture over BETS of what `combine` makes of a bet's log-wealth after and before each verdict."""
    gain = (1 - x) / (1 - bar) - 1

    def one(bet: float) -> NDArray[np.float64]:
        step = np.log1p(bet * gain)
        wealth = step.cumsum(axis=-1)
        return combine(wealth, wealth - step)

    return reduce(np.logaddexp, map(one, BETS)) - log(len(BETS))
