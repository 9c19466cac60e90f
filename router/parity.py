"""Owns the parity test: bounds on a mean verdict that stay true however often they are looked at.

It must not know what a verdict compared, nor what follows from a proof.

The test bets against "the mean is at most m" (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random
variables by betting", JRSS-B 86(1)). A share b of the wealth is staked on every verdict x, at odds that are fair if the
mean is m: the stake becomes b * x / m. If the claim is true the wealth is a non-negative supermartingale that starts at
1, and by Ville's inequality it ever reaches 1 / alpha with probability at most alpha: one may look after every verdict
and stop at will. The wealth is split over the fixed BETS: a mixture with no tuning and no memory.

Measured at margin 0.05 and alpha 0.05 on Bernoulli verdicts, looking after each one: median exchanges to a proof, and
for comparison the best fixed bet in hindsight, log(1 / alpha) / KL (no bound on a median, so it can be undercut):

    true mean         1.00   0.99   0.98   0.97
    this mixture        80    137    247    604
    even mixture        90    138    250    635
    aGRAPA bets         78    120    284  1,555
    best in hindsight   58    121    247    613

Predictable aGRAPA bets win by a little on near-perfect candidates and lose by a lot on merely good ones. False proofs
at the boundary, 10,000 paths of 2,000 verdicts: 3.6 % for two-valued verdicts, 4.2 % for three-valued. All tables:
`make bench-evidence`.

The yardstick y of an exchange is how the teacher agrees with itself there. It is asked for on a share of exchanges
drawn without regard to the verdict v, else it is NaN. The claim is then E[v - y] > -margin, and mean and bounds are of
the score 1 + v - y, "agreement relative to the yardstick", so that the bar stays 1 - margin. Scores lie in [0, 2], and
a bet on a high mean only needs them not to be negative. Nobody knows an unmeasured y, but 1 is the most it can be:

* Proof: the mean of two bettors' wealths, which is again a supermartingale. One bets on every exchange, unmeasured y
  as 1: quick where the teacher always repeats itself. The other bets on measured pairs only: slower by their share, but
  the one that can prove a candidate as good as a teacher that wavers. The mean costs each at most a factor of 2.
* Refutation: by measured pairs only, since against an imagined y of 1 any candidate looks worse than it is.

Verdicts may be a sample of the exchanges (`router.sampling`): one drawn with share s counts as 1 - (1 - v) / s, one not
drawn as 1, so that the mean is the same, and the lowest score 1 - 1 / `least`. A bet on a high mean then counts scores
from there upwards instead of from 0, so that none loses everything. Where that is depends on the least share alone, as
declared before data: bets that followed an exchange's own share would be larger where it is known to be better than the
mean, and prove falsely. With a yardstick the share is 1.

Weighting measured pairs by 1 / share (Waudby-Smith et al. 2022, "Anytime-valid off-policy inference") would use all
exchanges at once, but is only true if that share is known exactly, also where a teacher could not be reached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

from proxy.errors import BadInput

Verdicts = Sequence[float] | NDArray[np.float64]
Wealth = Callable[[float, int], NDArray[np.float64]]

BETS = {0.02: 0.03, 0.08: 0.07, 0.2: 0.12, 0.35: 0.14, 0.5: 0.14, 0.65: 0.14, 0.8: 0.14, 0.98: 0.22}
"""Share of the wealth that is bet -> part of the wealth that bets so; the parts add up to 1.

The best bet is (true mean - m) / (1 - m): small ones serve candidates just above the bar, the largest perfect ones.
"""

HALVINGS = 26  # of the interval that holds a bound: 1.5e-8, always rounded towards the safe side
PATH_STEP = 2**-10  # a path is for charts: a bound after each verdict, rounded to about 0.001 towards the safe side
PRIOR_MEAN, PRIOR_COUNT = 0.98, 20
STEADY = 20
WIDEST = 0.999  # a margin that leaves nothing to demand


@dataclass(frozen=True, slots=True)
class Parity:
    """What n verdicts say about "the candidate is not worse by more than the margin"; each bound holds at alpha."""

    n: int
    mean: float | None
    """Of the verdicts, plus 1 - `ceiling` where that is known, at most 1; None before the first verdict."""
    lower: float
    upper: float
    margin: float
    alpha: float
    proven: bool
    """lower > 1 - margin."""
    refuted: bool
    """upper < 1 - margin."""
    more: int | None
    """Exchanges still to plan for until a proof; 0 when proven, None when going on like this proves nothing."""
    measured: int = 0
    """Verdicts with a yardstick."""
    ceiling: float | None = None
    """Mean yardstick; None where none was measured: then the teacher counts as agreeing with itself always."""


def parity(
    verdicts: Verdicts, margin: float, alpha: float, yardsticks: Verdicts | None = None, least: float = 1.0
) -> Parity:
    """Test whether the mean verdict is above 1 - margin, at error rate alpha over all looks together.

    `yardsticks` has one number for each verdict, NaN where it was not measured; where any was, the mean tested is that
    of verdict - yardstick + 1. The bounds are the best so far, not the latest: a proof once reached stands. Only when
    they contradict each other, so that no constant mean fits (the candidate or the traffic changed), both fall back to
    what all n verdicts say now, which is never bolder. `least` is the least share in (0, 1] that verdicts were drawn
    with. BadInput for verdicts outside [1 - 1 / least, 1], or margin or alpha outside (0, 1), or yardsticks of another
    number.
    """
    x, bar = _checked(verdicts, margin, alpha, least=least), 1 - margin
    y = _yardsticks(x, yardsticks)
    known = ~np.isnan(y)
    lower, upper = _bounds(x, y, bar, alpha, ever=True, least=least)
    if lower > upper:
        # Sorted, as what all say and what the measured pairs say may still differ: then both are inside.
        lower, upper = sorted(_bounds(x, y, bar, alpha, ever=False, least=least))
    ceiling = float(y[known].mean()) if known.any() else None
    mean = max(0.0, float(x.mean())) if x.size else None
    if mean is not None and ceiling is not None:
        mean = min(1.0, mean + (1 - ceiling))
    more = 0 if lower > bar else _more(x, y, bar, alpha, least)
    return Parity(
        n=x.size,
        mean=mean,
        lower=lower,
        upper=upper,
        margin=margin,
        alpha=alpha,
        proven=lower > bar,
        refuted=upper < bar,
        more=more,
        measured=int(known.sum()),
        ceiling=ceiling,
    )


def widened(margin: float, yardsticks: Verdicts) -> float:
    """The margin for verdicts without yardsticks of their own: wider by what the teacher lacks of repeating itself.

    An estimate, drawn towards a steady teacher as if it had agreed with itself STEADY times more: two measurements must
    not widen the margin at will.
    """
    y = np.asarray(yardsticks, dtype=np.float64)
    return min(WIDEST, margin + float((1 - y).sum() / (y.size + STEADY)))


def family_alpha(alpha: float, k: int) -> float:
    """The alpha for the k-th (from 1) candidate of a task: alpha / (k (k + 1)), which sums to alpha over all retrains.

    Alpha-spending, as the baseline in Foster & Stine 2008, "Alpha-investing", JRSS-B 70(2): a union bound over a stream
    of hypotheses whose number nobody knows beforehand.
    """
    if k < 1:
        raise BadInput(f"candidates are counted from 1, not {k}")
    return alpha / (k * (k + 1))


def lower_path(
    verdicts: Verdicts, alpha: float, yardsticks: Verdicts | None = None, least: float = 1.0
) -> NDArray[np.float64]:
    """The lower bound after each verdict, shape (n,): the best so far, so it never falls."""
    x = _checked(verdicts, alpha, least=least)
    y = _yardsticks(x, yardsticks)
    return _path(lambda mean, until: relative_log_wealth(x[:until], y[:until], mean, least), x.size, alpha, 0.0)


def upper_path(
    verdicts: Verdicts, alpha: float, yardsticks: Verdicts | None = None, least: float = 1.0
) -> NDArray[np.float64]:
    """The upper bound after each verdict, shape (n,): the best so far, so it never rises."""
    x = _checked(verdicts, alpha, least=least)
    y = _yardsticks(x, yardsticks)
    known = ~np.isnan(y)
    if not known.any():
        return 1 - _path(lambda mean, until: log_wealth(1 - x[:until], mean), x.size, alpha, 0.0)
    low_scores = 1 - x + y  # As for the bound itself: only measured pairs count, and a score of the mean wins nothing.
    return 2 - _path(lambda m, i: log_wealth(np.where(known, low_scores, m)[:i], m), x.size, alpha, 1.0)


def _path(wealth: Wealth, n: int, alpha: float, lowest: float) -> NDArray[np.float64]:
    """The highest mean in [lowest, lowest + 1] rejected by then, after each of n verdicts; `lowest` where none is.

    Finds for each mean when it was first rejected (later for higher means), halving only where the time differs.
    `wealth(mean, until)` is the log-wealth after each of the first `until` verdicts.
    """
    path = np.full(n, lowest)
    spans = [(lowest, lowest + 1, 0, n)]  # means, and the positions at which the first and the second were rejected
    while spans:
        low, high, since, until = spans.pop()
        if since == until or high - low <= PATH_STEP:
            continue
        middle = (low + high) / 2
        hits = np.flatnonzero(wealth(middle, until) >= -log(alpha))
        first = int(hits[0]) if hits.size else until
        path[first:until] = np.maximum(path[first:until], middle)
        spans += [(low, middle, since, first), (middle, high, first, until)]
    return np.maximum.accumulate(path)


def lower_bound(verdicts: Verdicts, alpha: float) -> float:
    """The lower bound from all verdicts at once, whatever their order: below their mean, for one planned look."""
    x = _checked(verdicts, alpha)
    return _bounds(x, _yardsticks(x, None), 0.5, alpha, ever=False)[0]


def log_wealth(verdicts: NDArray[np.float64], mean: float, least: float = 1.0) -> NDArray[np.float64]:
    """Log of a bettor's wealth against "the mean is at most `mean`", after each verdict; shape (..., n) as given."""
    gain = _gain(verdicts, mean, least)
    return reduce(np.logaddexp, (np.log1p(bet * gain).cumsum(axis=-1) + log(part) for bet, part in BETS.items()))


def _gain(scores: NDArray[np.float64], mean: float, least: float) -> NDArray[np.float64]:
    """What a stake of 1 wins on each score, at least -1: from the lowest score there can be, 1 - 1 / least, upwards."""
    lowest = 1 - 1 / least
    return (scores - lowest) / (mean - lowest) - 1


def relative_log_wealth(
    verdicts: NDArray[np.float64], yardsticks: NDArray[np.float64], mean: float, least: float = 1.0
) -> NDArray[np.float64]:
    """Log-wealth against "verdict - yardstick + 1 is at most `mean` on average": the mean of the two bettors' wealths.

    Shapes (..., n) as given; yardsticks are NaN where not measured, and where none is, this is `log_wealth`.
    """
    measured = ~np.isnan(yardsticks)
    if not measured.any():
        return log_wealth(verdicts, mean, least)
    scores = verdicts + np.where(measured, 1 - yardsticks, 0)
    pairs = np.where(measured, scores, mean)  # A score of `mean` wins and loses nothing.
    return np.logaddexp(log_wealth(scores, mean, least), log_wealth(pairs, mean)) - log(2)


def _checked(verdicts: Verdicts, *shares: float, least: float = 1.0) -> NDArray[np.float64]:
    if not all(0 < 1 - share < 1 for share in shares):
        raise BadInput(f"margin and alpha must lie between 0 and 1, not {shares}: use for example 0.05")
    if not 0 < least <= 1:
        raise BadInput(f"the least share must lie above 0 and be at most 1, not {least}: use for example 0.7")
    x = np.asarray(verdicts, dtype=np.float64)
    if x.ndim != 1 or not ((x >= 1 - 1 / least) & (x <= 1)).all():
        span = f"[{1 - 1 / least:g}, 1]"
        raise BadInput(f"verdicts must be one row of numbers in {span}: check what the evaluator returned")
    return x


def _yardsticks(x: NDArray[np.float64], yardsticks: Verdicts | None) -> NDArray[np.float64]:
    y = np.full(x.shape, np.nan) if yardsticks is None else np.asarray(yardsticks, dtype=np.float64)
    if y.shape != x.shape or not (np.isnan(y) | ((y >= 0) & (y <= 1))).all():
        raise BadInput("yardsticks must be one number in [0, 1], or NaN, for each verdict")
    if (x[~np.isnan(y)] < 0).any():
        raise BadInput("a verdict with a yardstick must not be weighted: it has to be drawn for certain")
    return y


def _bounds(
    x: NDArray[np.float64], y: NDArray[np.float64], bar: float, alpha: float, ever: bool, least: float = 1.0
) -> tuple[float, float]:
    goal, known = -log(alpha), ~np.isnan(y)

    def rejects(wealth: NDArray[np.float64]) -> bool:
        return wealth.size > 0 and bool((wealth.max() if ever else wealth[-1]) >= goal)

    lower = _highest(lambda mean: rejects(relative_log_wealth(x, y, mean, least)), bar, 0.0, 1.0)
    if not known.any():
        return lower, 1 - _highest(lambda mean: rejects(log_wealth(1 - x, mean)), 1 - bar, 0.0, 1.0)
    low_scores = 1 - x[known] + y[known]  # 2 - score: it averages to 2 - mean
    return lower, 2 - _highest(lambda mean: rejects(log_wealth(low_scores, mean)), 2 - bar, 1.0, 2.0)


def _highest(rejected: Callable[[float], bool], bar: float, low: float, high: float) -> float:
    """The highest mean between `low` and `high` that is rejected, `low` where none is.

    Halves from `bar`, so that the answer lies above the bar only if the bar itself is rejected.
    """
    low, high = (bar, high) if rejected(bar) else (low, bar)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _more(x: NDArray[np.float64], y: NDArray[np.float64], bar: float, alpha: float, least: float) -> int | None:
    """Exchanges until either bettor alone proves parity, at the present share of measured pairs."""
    known = ~np.isnan(y)
    if not known.any():
        return _planned(x, bar, alpha, least)
    scores = x + np.where(known, 1 - y, 0)
    pairs = _planned(scores[known], bar, alpha / 2)
    plans = [_planned(scores, bar, alpha / 2, least), None if pairs is None else ceil(pairs * x.size / known.sum())]
    return min((plan for plan in plans if plan is not None), default=None)


def _planned(x: NDArray[np.float64], bar: float, alpha: float, least: float = 1.0) -> int | None:
    """Exchanges until the first bet alone proves parity, if each bet's log-wealth grows on as it did.

    A plan, not a promise: it suffices in about four of five runs from nothing at mean 0.98, in 50 to 86 % of those
    planned anew after 60 verdicts (true mean 0.97 to 0.99).
    Three perfect verdicts are not knowledge of perfection: the growth is averaged over the verdicts and PRIOR_COUNT
    imagined ones, right or wrong, with a plausible mean (PRIOR_MEAN, or half the margin where that is stricter). Their
    weight is that of the exchanges in which one failure is expected at the bar of the usual margin.
    """
    if x.size and x.mean() <= bar:
        return None
    bets, parts = np.array(list(BETS)), np.array(list(BETS.values()))
    plausible = max(PRIOR_MEAN, (1 + bar) / 2)
    wealth = np.log1p(bets[:, None] * _gain(x, bar, least)).sum(axis=1)
    wrong, right = _gain(np.array([0.0, 1.0]), bar, least)
    imagined = plausible * np.log1p(bets * right) + (1 - plausible) * np.log1p(bets * wrong)
    growth = (wealth + PRIOR_COUNT * imagined) / (x.size + PRIOR_COUNT)
    grows = growth > 0
    needed = (-np.log(parts * alpha) - wealth)[grows] / growth[grows]
    return max(1, ceil(needed.min())) if needed.size else None
