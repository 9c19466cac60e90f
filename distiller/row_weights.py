"""Owns how much each training row counts: newer rows, rarer labels and languages more. Must not know a loss.

A row's weight is w = r * c * g / mean(r * c * g), so that the weights' mean is 1 and a learning rate means the same:

    r = 2 ** (-(age in days) / half_life)     age: behind the newest row; 1 where half_life is 0
    c = (rows with this label) ** -balance    balance in [0, 1]: 0 leaves the labels as frequent as they are, 1 makes
                                              every label weigh the same before recency
    g = (rows of this group) ** (1 / T - 1)   groups are languages or teachers (`distiller.row_groups`); 1 where T is 1

With g, a group of n rows counts n ** (1 / T) beside the others. That is what sampling in proportion to it comes to on
average (Arivazhagan et al. 2019, arXiv:1907.05019, section 4.2; with 1 / T = 0.7 multilingual BERT, with 0.3 XLM-R:
Conneau et al. 2020, arXiv:1911.02116, section 3.1), but no row is repeated or left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from distiller.curate import Recorded
from distiller.row_groups import groups
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
    names = groups(rows).names if options.language_temperature > 1 else None
    if not (options.half_life_days or balance or (names and len(set(names)) > 1)):
        return None
    labels = [normalise(row.answer) for row in rows]
    return weigh([row.ts for row in rows], labels, options.half_life_days, balance, names, options.language_temperature)


def weigh(
    times: Sequence[datetime],
    labels: Sequence[str] | None = None,
    half_life: float = 0.0,
    balance: float = 0.0,
    names: Sequence[str] | None = None,
    temperature: float = 1.0,
) -> Weighted:
    """Weigh rows asked at `times`, with a label and the name of a group each where there are any; `half_life` in days.

    BadInput without rows, for another number of labels or names, a negative half-life, a balance outside [0, 1], a
    temperature below 1, or a balance without labels.
    """
    if not times or any(given is not None and len(given) != len(times) for given in (labels, names)):
        raise BadInput(f"{len(times)} rows cannot be weighed: give one label, and one group's name, a row")
    if not (half_life >= 0 and 0 <= balance <= 1 and temperature >= 1):
        raise BadInput(
            f"half-life {half_life} must be 0 (none) or more days, balance {balance} between 0 and 1, temperature "
            f"{temperature} at least 1"
        )
    if balance and labels is None:
        raise BadInput("only closed label sets can be balanced: set the balance to 0 for this task")
    raw = _recency(times, half_life) * _rarity(labels, balance, len(times))
    raw = raw * _rarity(names, 1 - 1 / temperature, len(times))
    weights: NDArray[np.float64] = raw / raw.mean()
    return Weighted(weights, float(weights.sum() ** 2 / (weights**2).sum()))


def _recency(times: Sequence[datetime], half_life: float) -> NDArray[np.float64]:
    if not half_life:
        return np.ones(len(times))
    newest = max(times)
    ages = np.array([(newest - time) / _DAY for time in times])
    with np.errstate(over="ignore"):  # Infinitely many half-lives ago is as good as never.
        return np.exp2(-ages / half_life)


def _rarity(names: Sequence[str] | None, power: float, rows: int) -> NDArray[np.float64]:
    if names is None or not power:
        return np.ones(rows)
    counts = Counter(names)
    return np.array([counts[name] for name in names], dtype=np.float64) ** -power
