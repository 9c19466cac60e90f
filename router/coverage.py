"""Owns selective coverage: how sure a candidate must be of its answer before that answer can count as good enough.

It must not know how a confidence is obtained, nor what routes by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from proxy.errors import BadInput
from router.parity import log_wealth, lower_bound

FEWEST = 30  # covered holdout rows below which no threshold is proposed


@dataclass(frozen=True, slots=True)
class Threshold:
    """A proposed threshold, with what the holdout says about the rows it covers (confidence >= value)."""

    value: float
    coverage: float
    """Covered share of the holdout."""
    agreement: float
    """Mean verdict of the covered rows."""
    lower: float
    """One-sided lower bound on that mean at confidence 1 - risk."""
    n: int
    """Covered rows."""


def choose_threshold(
    confidences: Sequence[float] | NDArray[np.float64],
    verdicts: Sequence[float] | NDArray[np.float64],
    margin: float,
    risk: float = 0.2,
) -> Threshold | None:
    """The smallest threshold whose covered rows have a mean verdict above 1 - margin at confidence 1 - risk, or None.

    It is chosen by looking at many thresholds, so its bound is optimistic and it is only a proposal: parity on later
    shadow exchanges, covered by this fixed threshold, certifies it. Agreement need not rise with confidence, so every
    observed confidence is tried, rows with equal confidence together. BadInput for unequal lengths or numbers that are
    none.
    """
    sure, scores = np.asarray(confidences, dtype=np.float64), np.asarray(verdicts, dtype=np.float64)
    if sure.shape != scores.shape or sure.ndim != 1 or np.isnan(sure).any():
        raise BadInput("confidences and verdicts must be two rows of numbers of the same length")
    if not ((scores >= 0) & (scores <= 1)).all() or not (0 < margin < 1 and 0 < risk < 1):
        raise BadInput("verdicts must lie in [0, 1], margin and risk between 0 and 1")
    order = np.argsort(-sure, kind="stable")
    sure, scores = sure[order], scores[order]
    last_of_tie = np.append(sure[1:] != sure[:-1], True)[: sure.size]
    enough = np.arange(1, sure.size + 1) >= FEWEST
    # The wealth does not depend on the order of verdicts, so one pass tests every threshold's rows at once.
    good = np.flatnonzero(last_of_tie & enough & (log_wealth(scores, 1 - margin) > -log(risk)))
    if not good.size:
        return None
    n = int(good[-1]) + 1
    covered = scores[:n]
    return Threshold(float(sure[n - 1]), n / sure.size, float(covered.mean()), lower_bound(covered, risk), n)


def coverage_interval(covered: int, total: int, alpha: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval for the covered share of exchanges, at confidence 1 - alpha."""
    if not (0 <= covered <= total and 0 < alpha < 1):
        raise BadInput(f"{covered} covered of {total} at alpha {alpha}: use 0 <= covered <= total and 0 < alpha < 1")
    lower = beta.ppf(alpha / 2, covered, total - covered + 1) if covered else 0.0
    upper = beta.ppf(1 - alpha / 2, covered + 1, total - covered) if covered < total else 1.0
    return float(lower), float(upper)
