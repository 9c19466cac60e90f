from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proxy.errors import BadInput
from router.parity import (
    BETS,
    PATH_STEP,
    family_alpha,
    log_wealth,
    lower_bound,
    lower_path,
    parity,
    relative_log_wealth,
    upper_path,
)

MARGIN = ALPHA = 0.05
GOAL = log(1 / ALPHA)

verdict_rows = st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), max_size=60)
long_rows = st.tuples(verdict_rows, st.integers(1, 20)).map(lambda drawn: drawn[0] * drawn[1])
shares = st.floats(0.01, 0.4)


def first_proof(paths: NDArray[np.float64], bar: float = 1 - MARGIN) -> NDArray[np.float64]:
    """Exchanges until the proof on each path, looking after every verdict; inf where there is none."""
    hit = log_wealth(paths, bar) >= GOAL
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, np.inf)


def bernoulli(mean: float, paths: int, n: int) -> NDArray[np.float64]:
    return (np.random.default_rng(20).random((paths, n)) < mean).astype(float)


def three_valued(paths: int, n: int) -> NDArray[np.float64]:
    return np.random.default_rng(21).choice([0.0, 0.5, 1.0], p=[0.02, 0.06, 0.92], size=(paths, n))


def drawn_by_the_past(paths: int, n: int) -> NDArray[np.float64]:
    """A candidate at the boundary whose verdicts turn coarse or fine by what came before: never above it on average."""
    random = np.random.default_rng(22).random((n, paths))
    rows = [np.ones(paths)]
    for draw in random[1:]:
        rows.append(np.where(rows[-1] == 1, np.where(draw < 0.95, 1.0, 0.0), np.where(draw < 0.5, 0.9, 1.0)))
    return np.stack(rows[1:], axis=1)


@pytest.mark.parametrize(
    "paths", [bernoulli(0.95, 2000, 1000), three_valued(2000, 1000), drawn_by_the_past(2000, 1000)],
    ids=["two values", "three values", "dependent"],
)  # fmt: skip
def test_peeking_after_every_verdict_proves_falsely_at_most_alpha(paths: NDArray[np.float64]) -> None:
    limit = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / len(paths))
    assert np.isfinite(first_proof(paths)).mean() <= limit
    assert np.isfinite(first_proof(1 - paths, MARGIN)).mean() <= limit  # false refutation, by the mirrored test
    assert np.isfinite(first_proof(paths, bar=0.92)).mean() > 2 * limit  # the simulation does notice a wrong bar


def test_a_good_candidate_is_proven_soon() -> None:
    """Median exchanges to a proof at margin and alpha 0.05: 80 at mean 1.00, 137 at 0.99, 247 at 0.98."""
    assert first_proof(np.ones((1, 200)))[0] == 80
    assert np.median(first_proof(bernoulli(0.99, 1000, 1000))) < 160
    assert np.median(first_proof(bernoulli(0.98, 1000, 1500))) < 300


def test_low_spread_is_rewarded() -> None:
    assert parity(np.full(1000, 0.97), MARGIN, ALPHA).proven
    assert not parity(bernoulli(0.97, 1, 1000)[0], 0.04, ALPHA).proven


@settings(deadline=None)
@given(long_rows, shares, shares)
def test_bounds_enclose_and_agree_with_the_claims(row: list[float], margin: float, alpha: float) -> None:
    found = parity(row, margin, alpha)
    assert 0 <= found.lower <= found.upper <= 1
    assert found.proven == (found.lower > 1 - margin)
    assert found.refuted == (found.upper < 1 - margin)
    assert not (found.proven and found.refuted)
    assert (found.more == 0) == found.proven
    if found.more is None:
        assert found.mean is not None
        assert found.mean < 1 - margin * 0.9
    assert found.n == len(row)


@settings(deadline=None)
@given(long_rows, shares, shares)
def test_proven_is_the_wealth_reaching_its_goal(row: list[float], margin: float, alpha: float) -> None:
    wealth, against = (log_wealth(np.array(x), m) for x, m in ((row, 1 - margin), ([1 - v for v in row], margin)))
    reached = max(wealth, default=-1) >= -log(alpha)
    found = parity(row, margin, alpha)
    if max(against, default=-1) < -log(alpha):
        assert found.proven == reached
    else:
        assert found.proven <= reached  # contradictory stream: never bolder


@settings(deadline=None)
@given(long_rows, st.floats(0.01, 0.9))
def test_one_look_keeps_below_the_mean_and_ignores_order(row: list[float], alpha: float) -> None:
    bound = lower_bound(row, alpha)
    assert bound <= (np.mean(row) if row else 0)
    assert lower_bound(row[::-1], alpha) == pytest.approx(bound, abs=1e-6)
    assert lower_bound(row, alpha / 2) <= bound


@settings(deadline=None)
@given(verdict_rows, shares)
def test_paths_only_tighten_and_end_where_parity_ends(row: list[float], alpha: float) -> None:
    lower, upper = lower_path(row, alpha), upper_path(row, alpha)
    assert lower.shape == upper.shape == (len(row),)
    assert (np.diff(lower) >= 0).all()
    assert (np.diff(upper) <= 0).all()
    for n in range(1, len(row) + 1, 17):
        found = parity(row[:n], MARGIN, alpha)
        if lower[n - 1] <= upper[n - 1]:
            assert lower[n - 1] <= found.lower + 1e-6
            assert found.lower <= lower[n - 1] + PATH_STEP + 1e-6
            assert upper[n - 1] - PATH_STEP - 1e-6 <= found.upper <= upper[n - 1] + 1e-6


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_more_perfect_verdicts_raise_the_bound(n: int, extra: int) -> None:
    fewer, more = parity([1.0] * n, MARGIN, ALPHA), parity([1.0] * (n + extra), MARGIN, ALPHA)
    assert fewer.lower < more.lower
    assert fewer.upper == more.upper == 1


def test_a_proof_once_reached_stands_while_one_mean_fits() -> None:
    row = [1.0] * 80
    assert parity(row, MARGIN, ALPHA).proven
    assert parity([*row, 0.0], MARGIN, ALPHA).proven
    assert log_wealth(np.array([*row, 0.0]), 1 - MARGIN)[-1] < GOAL


def test_a_candidate_that_broke_is_refuted_not_proven() -> None:
    found = parity([1.0] * 1000 + [0.0] * 200, MARGIN, ALPHA)
    assert found.refuted
    assert not found.proven
    assert found.mean is not None
    assert found.lower <= found.mean <= found.upper


def test_more_is_a_plan_that_mostly_suffices() -> None:
    start = parity([], MARGIN, ALPHA)
    assert (start.n, start.mean, start.lower, start.upper) == (0, None, 0, 1)
    assert start.more is not None
    enough = (first_proof(bernoulli(0.98, 500, 1000)) <= start.more).mean()
    assert 0.6 < enough < 0.95


def test_more_shrinks_as_perfect_verdicts_come_in_and_does_not_trust_the_first() -> None:
    plans = [parity([1.0] * n, MARGIN, ALPHA).more for n in (0, 3, 20, 60, 79, 80)]
    known = [plan for plan in plans if plan is not None]
    assert known == sorted(plans, reverse=True)  # type: ignore[type-var]
    assert known[1] > 250
    assert known[-1] == 0


@pytest.mark.parametrize("row", [[0.95] * 40, [0.0], [1.0] * 19 + [0.0], [0.5] * 100])
def test_no_plan_at_or_below_the_bar(row: list[float]) -> None:
    assert parity(row, MARGIN, ALPHA).more is None


def test_a_strict_margin_still_gets_a_plan() -> None:
    strict, usual = parity([], 0.01, ALPHA).more, parity([], MARGIN, ALPHA).more
    assert strict is not None
    assert usual is not None
    assert strict > usual


def test_family_alpha_spends_no_more_than_alpha() -> None:
    spent = [family_alpha(ALPHA, k) for k in range(1, 2000)]
    assert spent[0] == ALPHA / 2
    assert spent == sorted(spent, reverse=True)
    assert 0.999 * ALPHA < sum(spent) < ALPHA
    with pytest.raises(BadInput, match="from 1"):
        family_alpha(ALPHA, 0)


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan"), float("inf")])
def test_verdicts_outside_the_unit_interval_are_refused(bad: float) -> None:
    for look in (lower_path, upper_path, lower_bound):
        with pytest.raises(BadInput, match="verdicts"):
            look([1.0, bad], ALPHA)
    with pytest.raises(BadInput, match="verdicts"):
        parity([bad], MARGIN, ALPHA)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_shares_outside_the_unit_interval_are_refused(share: float) -> None:
    for margin, alpha in ((share, ALPHA), (MARGIN, share)):
        with pytest.raises(BadInput, match="between 0 and 1"):
            parity([1.0], margin, alpha)


verdict_pairs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 1.0]), st.sampled_from([0.0, 0.5, 1.0, 1.0, np.nan])), max_size=60
)
long_pairs = st.tuples(verdict_pairs, st.integers(1, 20)).map(
    lambda drawn: np.array(drawn[0] * drawn[1]).reshape(-1, 2)
)


def wavering(mean: float, teacher: float, share: float, paths: int, n: int) -> tuple[NDArray[np.float64], ...]:
    """Verdicts and yardsticks of these means, half of the exchanges right or wrong for one reason."""
    random = np.random.default_rng(23)
    reason = random.random((paths, n))
    own = np.where(random.random((paths, n)) < 0.5, reason, random.random((paths, n)))
    asked = random.random((paths, n)) < share
    return (own < mean).astype(float), np.where(asked, (reason < teacher).astype(float), np.nan)


def test_the_parts_of_the_wealth_add_up() -> None:
    assert sum(BETS.values()) == pytest.approx(1, abs=1e-12)
    assert all(0 < bet < 1 for bet in BETS)


@pytest.mark.parametrize(("teacher", "share"), [(1.0, 0.1), (0.95, 0.1), (0.9, 1.0)])
def test_with_yardsticks_too_peeking_proves_falsely_at_most_alpha(teacher: float, share: float) -> None:
    v, y = wavering(teacher - MARGIN, teacher, share, 1000, 1000)
    limit = ALPHA + 3 * sqrt(ALPHA * (1 - ALPHA) / len(v))
    assert (relative_log_wealth(v, y, 1 - MARGIN).max(axis=1) >= GOAL).mean() <= limit
    against = np.where(np.isnan(y), 1 + MARGIN, 1 - v + y)  # false refutation
    assert (log_wealth(against, 1 + MARGIN).max(axis=1) >= GOAL).mean() <= limit


def test_a_candidate_as_good_as_a_wavering_teacher_is_proved_by_yardsticks_only() -> None:
    v, y = (row[0] for row in wavering(0.9, 0.9, 1.0, 1, 1500))
    assert parity(v, MARGIN, ALPHA).refuted
    found = parity(v, MARGIN, ALPHA, y)
    assert found.proven
    assert found.measured == 1500
    assert found.ceiling == pytest.approx(0.9, abs=0.03)
    assert found.mean == pytest.approx(1 + v.mean() - y.mean())
    assert parity(np.maximum(v - 0.5, 0), MARGIN, ALPHA, y).refuted


def test_unmeasured_exchanges_refute_nothing_once_the_teacher_was_asked_again() -> None:
    v, y = np.zeros(500), np.full(500, np.nan)
    assert parity(v, MARGIN, ALPHA, y).refuted
    y[:3] = 0.0
    found = parity(v, MARGIN, ALPHA, y)
    assert not found.refuted
    assert not found.proven


@settings(deadline=None)
@given(long_rows, shares, shares)
def test_no_yardsticks_are_as_if_there_were_none(row: list[float], margin: float, alpha: float) -> None:
    assert parity(row, margin, alpha, [np.nan] * len(row)) == parity(row, margin, alpha)


@settings(deadline=None)
@given(long_rows, shares, shares)
def test_a_teacher_that_always_repeats_itself_changes_no_proof(row: list[float], margin: float, alpha: float) -> None:
    plain, asked = parity(row, margin, alpha), parity(row, margin, alpha, [1.0] * len(row))
    if not plain.refuted and not asked.refuted:
        assert asked.lower == pytest.approx(plain.lower, abs=1e-6)
    assert asked.mean == plain.mean


@settings(deadline=None)
@given(long_pairs, shares, shares)
def test_bounds_relative_to_the_yardstick_enclose_and_agree(
    pairs: NDArray[np.float64], margin: float, alpha: float
) -> None:
    v, y = pairs.T
    found = parity(v, margin, alpha, y)
    assert 0 <= found.lower <= found.upper <= 1
    assert found.proven == (found.lower > 1 - margin)
    assert found.refuted == (found.upper < 1 - margin)
    assert (found.more == 0) == found.proven
    assert found.measured == np.isfinite(y).sum()
    assert (found.ceiling is None) == (found.measured == 0)
    surer = parity(v, margin, alpha / 2, y)
    wealth = relative_log_wealth(v, y, 1 - margin)
    if max(wealth, default=-1) < -log(alpha):
        assert not found.proven
        assert not surer.proven


@settings(deadline=None)
@given(long_pairs, shares)
def test_a_stricter_yardstick_never_helps_a_proof(pairs: NDArray[np.float64], bar: float) -> None:
    v, y = pairs.T
    stricter = np.where(np.isnan(y), np.nan, np.minimum(1, y + 0.5))
    lenient = relative_log_wealth(v, y, 1 - bar)
    assert (relative_log_wealth(v, stricter, 1 - bar) <= lenient + 1e-9).all()
    assert (relative_log_wealth(np.maximum(0, v - 0.5), y, 1 - bar) <= lenient + 1e-9).all()
    assert (relative_log_wealth(v, y, 1 - bar / 2) <= lenient + 1e-9).all()  # bounds nest: a higher bar is harder


def test_yardsticks_must_be_shares_one_for_each_verdict() -> None:
    for bad in ([1.0], [1.0, 1.1], [1.0, -0.1], [[1.0, 1.0]]):
        with pytest.raises(BadInput, match="yardsticks"):
            parity([1.0, 1.0], MARGIN, ALPHA, bad)  # type: ignore[arg-type]


def test_the_plan_counts_exchanges_not_pairs() -> None:
    v, y = (row[0] for row in wavering(0.9, 0.9, 0.2, 1, 200))
    found = parity(v, MARGIN, ALPHA, y)
    assert not found.proven
    every = parity(v[np.isfinite(y)], MARGIN, ALPHA, y[np.isfinite(y)])
    assert found.more is not None
    assert every.more is not None
    assert found.more > 2 * every.more
