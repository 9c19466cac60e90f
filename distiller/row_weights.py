"""Owns how much each training row counts: newer rows and rarer labels more. Must not know how a loss uses it.

A row's weight is w = r * c / mean(r * c), so that the weights' mean is 1 and a learning rate means the same with them:

    r = 2 ** (-(age in days) / half_life)     age: behind the newest row; 1 where half_life is 0
    c = (rows with this label) ** -balance    balance in [0, 1]: 0 leaves the labels as frequent as they are, 1 makes
                                              every label weigh the same before recency
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from distiller.curate import Recorded
from distiller.settings import DistillerSettings
from proxy.errors import BadInput
from router.evaluators import normalise

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Weighted:
    """Weights with mean 1, one a row, none negative, and how many equal rows would be as good."""

    weights: NDArray[np.float64]
    effective: float
    """(sum of w)^2 / (sum of w^2), in [1, rows] (Kish 1965, "Survey sampling", section 11.7)."""


def weigh_rows(rows: Sequence[Recorded], evaluator: str, options: DistillerSettings) -> Weighted | None:
    """By the settings; None where they make all rows alike. Only labels are balanced, as only they come again."""
    balance = options.class_balance if evaluator == "label" else 0.0
    if not (options.half_life_days or balance):
        return None
    return weigh([row.ts for row in rows], [normalise(row.answer) for row in rows], options.half_life_days, balance)


def weigh(
    times: Sequence[datetime], labels: Sequence[str] | None = None, half_life: float = 0.0, balance: float = 0.0
) -> Weighted:
    """Weigh rows asked at `times`, with a label each where there are any; `half_life` is in days.

    BadInput without rows, for another number of labels, a negative half-life, a balance outside [0, 1], or a balance
    without labels.
    """
    if not times or (labels is not None and len(labels) != len(times)):
        raise BadInput(f"{len(times)} rows and {len(labels or ())} labels cannot be weighed: give one label a row")
    if not (half_life >= 0 and 0 <= balance <= 1):
        raise BadInput(f"half-life {half_life} must be 0 (none) or more days, balance {balance} between 0 and 1")
    if balance and labels is None:
        raise BadInput("only closed label sets can be balanced: set the balance to 0 for this task")
    raw = _recency(times, half_life) * _rarity(labels, balance, len(times))
    weights: NDArray[np.float64] = raw / raw.mean()
    return Weighted(weights, float(weights.sum() ** 2 / (weights**2).sum()))


def _recency(times: Sequence[datetime], half_life: float) -> NDArray[np.float64]:
    if not half_life:
        return np.ones(len(times))
    newest = max(times)
    ages = np.array([(newest - time) / _DAY for time in times])
    with np.errstate(over="ignore"):  # Infinitely many half-lives ago is as good as never.
        return np.exp2(-ages / half_life)


def _rarity(labels: Sequence[str] | None, balance: float, rows: int) -> NDArray[np.float64]:
    if labels is None or not balance:
        return np.ones(rows)
    counts = Counter(labels)
    return np.array([counts[label] for label in labels], dtype=np.float64) ** -balance
