"""Owns selective coverage: how sure a candidate must be of its answer before that answer can count as good enough.

It must not know how a confidence is obtained, nor what routes by it.

The certified thing is the policy "candidate at or above the threshold, teacher below". What is chosen here is only a
proposal: parity on later shadow exchanges, covered by this fixed threshold, certifies it. The proposal itself is safe
against its many tries, by Learn then Test with fixed-sequence testing from several starts (Angelopoulos, Bates,
Candes, Jordan & Lei 2025, "Learn then test", Annals of Applied Statistics 19(2), sections 3 and B).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, log, nextafter

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from proxy.errors import BadInput
from router.parity import BETS, log_wealth, lower_bound

FEWEST = 30  # covered holdout rows below which no threshold is proposed
PRIOR = 0.5  # of the beta prior that the coverage interval mixes over: both ends are as well known as the middle
STARTS = 4  # of sequences of thresholds: an unlucky top does not hide a good rest

Numbers = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a threshold is chosen for: the proof it needs, and the exchanges it can then serve.

    Money in US dollars an exchange: `teacher_usd` for one the candidate covers, `candidate_usd` for one it is asked,
    covered or not. None is unpriced: then shares of the teacher's spend are compared instead, which never decides
    whether a candidate pays at all. `audit_share` of the covered ones is paid to the teacher nevertheless.
    """

    alpha: float = 0.05
    horizon: int = 2000
    """Exchanges of the task to plan for, those until the proof included."""
    audit_share: float = 0.0
    teacher_usd: float | None = None
    candidate_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """A proposed threshold, with what the holdout says about the rows it covers (confidence >= value)."""

    value: float
    coverage: float
    """Covered share of the holdout."""
    agreement: float
    """Mean verdict of the covered rows."""
    lower: float
    """One-sided lower bound on that mean; it holds at confidence 1 - risk, whichever threshold was chosen."""
    n: int
    """Covered rows."""
    proof: int | None
    """Covered exchanges to plan for until parity is proven; None where going on like this proves nothing."""
    saving: float
    """Expected net saving an exchange over the horizon: US dollars, or a share of teacher spend where unpriced."""
    priced: bool


def choose_threshold(
    confidences: Numbers,
    verdicts: Numbers,
    margin: float,
    risk: float = 0.2,
    plan: Plan | None = None,
    of: int | None = None,
) -> Threshold | None:
    """The threshold with the highest expected net saving among those the holdout lets through, or None.

    Let through: "the mean verdict of the covered rows is at most 1 - margin" is rejected; of all that are, each really
    is above it at confidence 1 - risk. Covering more saves more later, covering surer rows is proven sooner: the saving
    over `plan.horizon` weighs both. `of` is the number of holdout rows where some can never be covered, such as answers
    that break the format. Rows with equal confidence are covered together. BadInput for unequal lengths or numbers that
    are none.
    """
    sure, scores = _by_confidence(confidences, verdicts, margin, risk)
    plan, total = plan or Plan(), sure.size if of is None else of
    found = [
        _threshold(sure, scores[:n], total, margin, risk / STARTS, plan)
        for n in _let_through(sure, scores, margin, risk)
    ]
    return max(found, key=lambda one: (one.saving, one.n), default=None)


def coverage_at(confidences: Numbers, verdicts: Numbers, agreement: float, of: int | None = None) -> float:
    """The largest share of rows that is covered with a mean verdict of at least `agreement`: in hindsight."""
    sure, scores = _by_confidence(confidences, verdicts, 0.5, 0.5)
    means = scores.cumsum() / np.arange(1, sure.size + 1)
    reached = np.flatnonzero(_last_of_tie(sure) & (means >= agreement - 1e-12))
    return float((reached[-1] + 1) / (sure.size if of is None else of)) if reached.size else 0.0


def net_saving(coverage: float, proof: int | None, plan: Plan) -> float:
    """Expected net saving an exchange: covered exchanges after the proof, less audits and what the candidate costs.

    Until the proof every exchange is still the teacher's, and the candidate is asked too; below the threshold both are
    paid for. In US dollars where the plan has prices, else as a share of the teacher's spend.
    """
    until = inf if proof is None or not coverage else proof / coverage
    serving = max(0.0, 1 - until / plan.horizon)
    worth = 1.0 if plan.teacher_usd is None or plan.candidate_usd is None else plan.teacher_usd
    paid = 0.0 if plan.teacher_usd is None or plan.candidate_usd is None else plan.candidate_usd
    return serving * coverage * (1 - plan.audit_share) * worth - paid


def coverage_interval(covered: int, total: int, alpha: float) -> tuple[float, float]:
    """Limits in [0, 1] of the covered share of exchanges; at confidence 1 - alpha they hold at all looks together.

    The shares p under which the count is not too surprising: its likelihood, mixed over a Beta(1/2, 1/2) prior, is less
    than 1 / alpha times that under p. Under the true p that ratio is a martingale from 1, which Ville's inequality
    bounds over all looks (Robbins 1970, "Statistical methods related to the law of the iterated logarithm", Annals of
    Mathematical Statistics 41(5); Howard, Ramdas, McAuliffe & Sekhon 2021, "Time-uniform, nonparametric,
    nonasymptotic confidence sequences", Annals of Statistics 49(2)). It takes an exchange to be covered with the same
    probability whatever came before. BadInput for counts or an alpha that cannot be.
    """
    if not (0 <= covered <= total and 0 < alpha < 1):
        raise BadInput(f"{covered} covered of {total} at alpha {alpha}: use 0 <= covered <= total and 0 < alpha < 1")
    least = float(betaln(covered + PRIOR, total - covered + PRIOR) - betaln(PRIOR, PRIOR)) + log(alpha)
    return _least_likely(covered, total, least), 1 - _least_likely(total - covered, total, least)


def _least_likely(count: int, total: int, least: float) -> float:
    """The share below the counted one at which the count's log-likelihood, which rises up to there, is `least`."""
    if not count:
        return 0.0

    def above(share: float) -> float:
        return float(xlogy(count, share) + xlog1py(total - count, -share)) - least

    return float(brentq(above, nextafter(0, 1), count / total))


def _by_confidence(
    confidences: Numbers, verdicts: Numbers, margin: float, risk: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sure, scores = np.asarray(confidences, dtype=np.float64), np.asarray(verdicts, dtype=np.float64)
    if sure.shape != scores.shape or sure.ndim != 1 or np.isnan(sure).any():
        raise BadInput("confidences and verdicts must be two rows of numbers of the same length")
    if not ((scores >= 0) & (scores <= 1)).all() or not (0 < margin < 1 and 0 < risk < 1):
        raise BadInput("verdicts must lie in [0, 1], margin and risk between 0 and 1")
    order = np.argsort(-sure, kind="stable")
    return sure[order], scores[order]


def _last_of_tie(sure: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.append(sure[1:] != sure[:-1], True)[: sure.size]


def _let_through(sure: NDArray[np.float64], scores: NDArray[np.float64], margin: float, risk: float) -> list[int]:
    """Numbers of covered rows whose threshold is let through.

    Starts and order depend on the confidences alone. From each start, at its share of the risk, thresholds are tested
    downwards until the first that is not rejected: so a false one among them was the first false one of its sequence.
    """
    bar, needed = 1 - margin, log(STARTS / risk)
    ends = np.flatnonzero(_last_of_tie(sure)) + 1
    hopeless = int((log_wealth(np.ones(sure.size), bar) <= needed).sum())  # too few rows even if all were good
    fewest = max(FEWEST, hopeless + 1)
    if sure.size < fewest:
        return []
    # The wealth does not depend on the order of verdicts, so one pass tests every threshold's rows at once.
    rejected = log_wealth(scores, bar)[ends - 1] > needed
    through: set[int] = set()
    for start in np.linspace(fewest, sure.size, STARTS).round():
        for place in range(int(np.searchsorted(ends, start)), ends.size):
            if not rejected[place]:
                break
            through.add(int(ends[place]))
    return sorted(through)


def _threshold(
    sure: NDArray[np.float64], covered: NDArray[np.float64], total: int, margin: float, risk: float, plan: Plan
) -> Threshold:
    n = covered.size
    proof, coverage = _proof(covered, 1 - margin, plan.alpha), n / total
    return Threshold(
        value=float(sure[n - 1]),
        coverage=coverage,
        agreement=float(covered.mean()),
        lower=lower_bound(covered, risk),
        n=n,
        proof=proof,
        saving=net_saving(coverage, proof, plan),
        priced=plan.teacher_usd is not None and plan.candidate_usd is not None,
    )


def _proof(covered: NDArray[np.float64], bar: float, alpha: float) -> int | None:
    """Covered exchanges until the first of the parity test's bets alone proves it, if they go on as on the holdout.

    Half a failure is imagined among them: a few perfect rows are not knowledge of perfection.
    """
    bets, parts = np.array(list(BETS)), np.array(list(BETS.values()))
    growth = np.log1p(bets[:, None] * (covered / bar - 1)).sum(axis=1)
    growth = (growth + np.log1p(-bets) / 2) / (covered.size + 0.5)
    grows = growth > 0
    needed = -np.log(parts * alpha)[grows] / growth[grows]
    return ceil(needed.min()) if needed.size else None
