"""Owns calibration: from a confidence to the probability that the answer is as good as the teacher's.

It must not know how a confidence is obtained, nor what is done with the probability. Workers apply it: nothing heavy is
imported here.

Isotonic regression by pooling adjacent violators (Barlow, Bartholomew, Bremner & Brunk 1972, "Statistical inference
under order restrictions"; for classifiers Zadrozny & Elkan 2002, KDD), read between the blocks along straight lines
(Oron & Flournoy 2017, "Centered isotonic regression", Statistics in Biopharmaceutical Research 9(3)). A trace of the
confidence itself stays in, so that no two answers it tells apart become equal: a threshold on one scale is a threshold
on the other, and covers the same answers.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from proxy.errors import BadInput

Knots = tuple[tuple[float, float], ...]
"""(confidence, probability), both rising; none at all leaves a confidence as it is."""

TRACE = 1e-3
BINS = 10


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far confidences are from the verdicts they predict; both in [0, 1], 0 is best."""

    ece: float
    """Expected calibration error: mean distance of confidence and verdict over BINS bins of equally many rows.

    Rows of one confidence that fall into several bins count in each with the mean of their verdicts.
    """
    brier: float
    """Mean squared distance."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """One adapter's own calibration; `before` and `after` are None without rows.

    It holds for the weights and the number format whose answers it was fitted to: another export needs its own.
    """

    knots: Knots
    before: Reliability | None
    after: Reliability | None
    """Measured on rows the fit did not see (`calibrated_elsewhere`)."""


def calibrate(confidences: Sequence[float], verdicts: Sequence[float]) -> Calibration:
    """Fit to all rows, and measure; BadInput as `fit`."""
    return Calibration(
        knots=fit(confidences, verdicts),
        before=reliability(confidences, verdicts),
        after=reliability(calibrated_elsewhere(confidences, verdicts), verdicts),
    )


def fit(confidences: Sequence[float], verdicts: Sequence[float]) -> Knots:
    """The isotonic fit of verdicts (in [0, 1]) to confidences (in [0, 1]); no rows give no knots.

    BadInput for unequal lengths or numbers outside [0, 1].
    """
    _check(confidences, verdicts)
    blocks: list[tuple[float, float, int]] = []  # sum of confidences, sum of verdicts, rows
    same: dict[float, tuple[float, int]] = {}
    for sure, verdict in sorted(zip(confidences, verdicts, strict=True)):
        total, n = same.get(sure, (0.0, 0))
        same[sure] = total + verdict, n + 1
    for sure, (total, n) in same.items():
        blocks.append((sure * n, total, n))
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            last = blocks.pop()
            blocks[-1] = tuple(a + b for a, b in zip(blocks[-1], last, strict=True))  # type: ignore[assignment]
    return tuple((sure / n, min(1.0, total / n)) for sure, total, n in blocks)


def apply(knots: Knots, confidence: float) -> float:
    """The probability in [0, 1]; it never falls as the confidence rises, and outside the knots stays as at the last."""
    if not knots:
        return confidence
    place = bisect_right(knots, confidence, key=lambda knot: knot[0])
    low, high = knots[max(place - 1, 0)], knots[min(place, len(knots) - 1)]
    value = low[1]
    if low[0] <= confidence < high[0]:
        value = min(high[1], value + (high[1] - value) * ((confidence - low[0]) / (high[0] - low[0])))
    return (1 - TRACE) * value + TRACE * confidence


def reliability(confidences: Sequence[float], verdicts: Sequence[float]) -> Reliability | None:
    """How well confidences predict verdicts; None without rows."""
    _check(confidences, verdicts)
    rows = list(zip(confidences, verdicts, strict=True))
    if not rows:
        return None
    level = [(sure, mean) for sure, verdicts in _tied(rows) for mean in [sum(verdicts) / len(verdicts)] * len(verdicts)]
    cuts = [len(rows) * i // BINS for i in range(BINS + 1)]
    bins = [level[start:end] for start, end in pairwise(cuts)]
    return Reliability(
        ece=sum(abs(sum(sure - verdict for sure, verdict in own)) for own in bins) / len(rows),
        brier=sum((sure - verdict) ** 2 for sure, verdict in rows) / len(rows),
    )


def _tied(rows: Sequence[tuple[float, float]]) -> list[tuple[float, list[float]]]:
    """The verdicts of each confidence, which rises: which of equals falls into which bin must not matter."""
    found: defaultdict[float, list[float]] = defaultdict(list)
    for sure, verdict in rows:
        found[sure].append(verdict)
    return sorted(found.items())


def calibrated_elsewhere(confidences: Sequence[float], verdicts: Sequence[float]) -> list[float]:
    """Each row calibrated by a fit to the other half of the rows: what calibration does to rows it has not seen."""
    pairs = list(zip(confidences, verdicts, strict=True))
    halves = [fit(*zip(*half, strict=True)) if (half := pairs[start::2]) else () for start in (1, 0)]
    return [apply(halves[place % 2], sure) for place, (sure, _) in enumerate(pairs)]


def _check(confidences: Sequence[float], verdicts: Sequence[float]) -> None:
    if len(confidences) != len(verdicts) or not all(
        0 <= value <= 1 for row in (confidences, verdicts) for value in row
    ):
        raise BadInput("confidences and verdicts must be two rows of the same length, of numbers in [0, 1]")
