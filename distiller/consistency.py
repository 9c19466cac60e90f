"""Owns which teacher's answers are worth asking for again, and what the repeats say of the first. Must not ask anybody.

Rows on which a classifier hesitates are asked for first, as a budget for repeats is small and a teacher that is sure is
not worth it. What is kept, counted less or dropped follows from how often it repeated itself, by the task's evaluator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy.errors import BadInput
from router.evaluators import Evaluator
from router.said import Said

KEEP, DOWN_WEIGHT, DROP = "keep", "down-weight", "drop"
STEADY, WAVERING = 0.99, 0.5
"""Mean agreement of the repeats with the answer: at least STEADY keeps it, below WAVERING drops it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean verdict of the repeats against the recorded answer, and what to do; `weight` is to multiply the row's by."""

    mean: float
    action: str
    weight: float


def to_ask(margins: Sequence[float] | NDArray[np.float64], budget: int) -> list[int]:
    """The places of the `budget` rows with the smallest margins, in order of place; the first of equals.

    A margin is how far the likeliest label is ahead of the second, in [0, 1]; NaN (nobody judged the row) is not asked
    for. BadInput for a negative budget.
    """
    if budget < 0:
        raise BadInput(f"a budget of {budget} questions is none: use 0 or more")
    given = np.asarray(margins, dtype=np.float64)
    order = np.argsort(given, kind="stable")  # NaN comes last.
    return sorted(int(place) for place in order[: min(budget, int((~np.isnan(given)).sum()))])


def agree(request: Mapping[str, Any], recorded: str, repeats: Sequence[str], evaluator: Evaluator) -> Agreement:
    """Compare the repeats with the recorded answer; BadInput without repeats."""
    if not repeats:
        raise BadInput("nobody asked the teacher again: there is nothing to compare its answer with")
    verdicts = [evaluator(request, Said(recorded), Said(one)) for one in repeats]
    mean = sum(verdicts) / len(verdicts)
    if mean >= STEADY:
        return Agreement(mean, KEEP, 1.0)
    return Agreement(mean, DROP, 0.0) if mean < WAVERING else Agreement(mean, DOWN_WEIGHT, mean)
