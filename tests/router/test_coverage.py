import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, binom

from proxy.errors import BadInput
from router.calibration import apply, fit
from router.coverage import FEWEST, STARTS, Plan, choose_threshold, coverage_at, coverage_interval, net_saving
from router.parity import lower_bound

holdouts = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.4, 0.5, 0.7, 0.9, 0.99]) | st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 1.0])
    ),
    max_size=80,
).flatmap(lambda rows: st.integers(1, 6).map(lambda times: rows * times))
margins = st.floats(0.02, 0.6)


@settings(deadline=None)
@given(holdouts, margins)
def test_a_proposal_is_a_confidence_that_holds(rows: list[tuple[float, float]], margin: float) -> None:
    confidences, verdicts = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.array([]),) * 2
    found = choose_threshold(confidences, verdicts, margin)
    if found:
        covered = verdicts[confidences >= found.value]
        assert found.value in confidences
        assert found.n == len(covered) >= FEWEST
        assert found.coverage == found.n / len(rows)
        assert found.agreement == pytest.approx(covered.mean())
        assert 1 - margin - 1e-6 < found.lower <= found.agreement
        assert found.lower == pytest.approx(lower_bound(covered, 0.2 / STARTS), abs=1e-6)
    else:  # everything at once is one of the starts
        assert len(rows) < FEWEST or lower_bound(verdicts, 0.2 / STARTS) <= 1 - margin + 1e-6


@settings(deadline=None)
@given(holdouts, margins)
def test_only_the_order_of_confidences_counts(rows: list[tuple[float, float]], margin: float) -> None:
    confidences, verdicts = [one for one, _ in rows], [other for _, other in rows]
    knots = fit(confidences, verdicts)
    found = choose_threshold(confidences, verdicts, margin)
    calibrated = [apply(knots, one) for one in confidences]
    assume(len(set(calibrated)) == len(set(confidences)))  # but for confidences that differ in the last digits
    again = choose_threshold(calibrated, verdicts, margin)
    assert (found is None) == (again is None)
    if found and again:
        assert (again.n, again.value) == (found.n, apply(knots, found.value))


@pytest.mark.parametrize("n", [100, 400])
def test_at_the_boundary_a_proposal_is_wrong_at_most_at_its_risk(n: int) -> None:
    """The worst student: exactly at the bar wherever one looks, and 1,000 holdouts to be lucky with."""
    draw = np.random.default_rng(5)
    proposed = sum(
        choose_threshold(draw.random(n), (draw.random(n) < 0.95).astype(float), 0.05) is not None for _ in range(1000)
    )
    assert proposed <= 200 - 2 * (1000 * 0.2 * 0.8) ** 0.5  # two standard errors below the risk
    assert proposed > 0  # or the simulation shows nothing


def test_confidence_that_means_something_keeps_the_risk_where_the_rows_turn_bad() -> None:
    """Agreement falls with confidence and crosses the bar at 0.5: covering more than that is the mistake."""
    draw = np.random.default_rng(6)
    wrong = found = 0
    for _ in range(500):
        sure = draw.random(300)
        one = choose_threshold(sure, (draw.random(300) < np.where(sure > 0.5, 0.99, 0.6)).astype(float), 0.05)
        found += one is not None
        wrong += one is not None and (0.5 * 0.99 + 0.6 * (0.5 - one.value)) / (1 - one.value) < 0.95 and one.value < 0.5
    assert wrong <= 0.2 * 500
    assert found > 150


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=200), margins)
def test_nothing_is_proposed_when_all_verdicts_are_0(confidences: list[float], margin: float) -> None:
    assert choose_threshold(confidences, [0.0] * len(confidences), margin) is None


def test_the_sure_half_is_found() -> None:
    found = choose_threshold([0.9] * 100 + [0.3] * 100, [1.0] * 100 + [0.0, 1.0] * 50, margin=0.05)
    assert found is not None
    assert (found.value, found.coverage, found.agreement, found.n) == (0.9, 0.5, 1.0, 100)


def test_an_unlucky_top_does_not_hide_a_good_rest() -> None:
    confidences = np.linspace(1, 0.5, 400)
    verdicts = np.ones(400)
    verdicts[:4] = 0
    found = choose_threshold(confidences, verdicts, margin=0.05)
    assert found is not None
    assert found.n == 400
    assert choose_threshold(confidences[:60], verdicts[:60], margin=0.05) is None


def test_rows_with_equal_confidence_are_covered_together() -> None:
    assert choose_threshold([0.8] * 200, [1.0] * 100 + [0.0] * 100, margin=0.05) is None


def test_surer_rows_are_chosen_where_time_is_short_and_more_rows_where_it_is_not() -> None:
    confidences = np.linspace(1, 0, 400)
    verdicts = np.ones(400)
    verdicts[250::20] = 0  # of the less sure 150, one in twenty is wrong
    soon = choose_threshold(confidences, verdicts, 0.05, plan=Plan(horizon=300))
    later = choose_threshold(confidences, verdicts, 0.05, plan=Plan(horizon=100_000))
    assert soon is not None
    assert later is not None
    assert soon.n < later.n == 400
    assert soon.proof is not None
    assert later.proof is not None
    assert soon.proof < later.proof


def test_saving_is_what_is_avoided_after_the_proof_less_audits_and_asking() -> None:
    plan = Plan(horizon=1000, audit_share=0.1, teacher_usd=0.01, candidate_usd=0.001)
    assert net_saving(0.5, 100, plan) == pytest.approx(0.8 * 0.5 * 0.9 * 0.01 - 0.001)
    assert net_saving(0.5, None, plan) == net_saving(0.0, 100, plan) == net_saving(0.1, 500, plan) == -0.001
    unpriced = Plan(horizon=1000, audit_share=0.1, teacher_usd=0.01)
    assert net_saving(0.5, 100, unpriced) == pytest.approx(0.8 * 0.5 * 0.9)
    found = choose_threshold([0.9] * 200, [1.0] * 200, 0.05, plan=plan)
    assert found is not None
    assert (found.priced, found.saving) == (True, net_saving(1.0, found.proof, plan))


def test_rows_that_can_never_be_covered_lower_the_coverage() -> None:
    found = choose_threshold([0.9] * 100, [1.0] * 100, 0.05, of=200)
    assert found is not None
    assert found.coverage == 0.5


def test_coverage_in_hindsight() -> None:
    assert coverage_at([0.9, 0.8, 0.7, 0.6], [1.0, 1.0, 0.0, 1.0], 0.75) == 1.0
    assert coverage_at([0.9, 0.8, 0.7, 0.6], [1.0, 1.0, 0.0, 1.0], 0.95) == 0.5
    assert coverage_at([0.9, 0.8], [1.0, 1.0], 0.95, of=8) == 0.25
    assert coverage_at([0.9, 0.9], [1.0, 0.0], 0.95) == coverage_at([], [], 0.95) == 0.0


@pytest.mark.parametrize(("n", "proposed"), [(FEWEST - 1, False), (FEWEST, True)])
def test_too_few_rows_propose_nothing(n: int, proposed: bool) -> None:
    assert (choose_threshold([0.9] * n, [1.0] * n, margin=0.5) is not None) == proposed


@pytest.mark.parametrize(
    ("confidences", "verdicts", "margin"),
    [
        ([0.5], [], 0.05), ([[0.5]], [[1.0]], 0.05), ([float("nan")], [1.0], 0.05), ([0.5], [float("nan")], 0.05),
        ([0.5], [1.5], 0.05), ([0.5], [1.0], 0.0), ([0.5], [1.0], 1.0),
    ],
)  # fmt: skip
def test_bad_input(confidences: list[float], verdicts: list[float], margin: float) -> None:
    with pytest.raises(BadInput):
        choose_threshold(confidences, verdicts, margin)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.001, 0.5))
def test_the_interval_encloses_the_share_grows_with_it_and_mirrors(covered: int, rest: int, alpha: float) -> None:
    total = covered + rest
    lower, upper = coverage_interval(covered, total, alpha)
    assert 0 <= lower < upper <= 1
    if total:
        assert lower <= covered / total <= upper
    other = coverage_interval(rest, total, alpha)
    assert (1 - upper, 1 - lower) == pytest.approx(other, abs=1e-9)
    more = coverage_interval(covered + 1, total + 1, alpha)
    less = coverage_interval(covered, total + 1, alpha)
    assert less[0] < more[0] or covered == 0
    assert less[1] < more[1] or rest == 0
    surer = coverage_interval(covered, total, alpha / 2)
    assert surer[0] <= lower < upper <= surer[1]


@given(st.integers(1, 500), st.integers(0, 500), st.floats(0.001, 0.5))
def test_at_a_limit_the_mixture_is_as_many_times_likelier_as_alpha_says(covered: int, rest: int, alpha: float) -> None:
    lower, _ = coverage_interval(covered, covered + rest, alpha)
    mixed = betabinom.logpmf(covered, covered + rest, 0.5, 0.5)
    assert mixed - binom.logpmf(covered, covered + rest, lower) == pytest.approx(-np.log(alpha), abs=1e-5)


def test_nothing_compared_says_nothing_and_all_or_none_covered_leave_one_side_open() -> None:
    assert coverage_interval(0, 0, 0.05) == (0, 1)
    assert coverage_interval(0, 1, 0.05) == pytest.approx((0, 0.975))  # 1 / 2 = mean of the prior, over 1 - p, is 20
    assert coverage_interval(1, 1, 0.05) == pytest.approx((0.025, 1))


@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_however_often_it_is_looked_at_the_interval_is_left_at_most_at_alpha(share: float) -> None:
    runs, looks, alpha = 1000, 400, 0.1
    limits = [[coverage_interval(k, n, alpha) for k in range(n + 1)] for n in range(0, looks + 1, 8)]
    counts = (np.random.default_rng(7).random((runs, looks)) < share).cumsum(axis=1)
    left = np.zeros(runs, dtype=bool)
    once = np.zeros(runs, dtype=bool)
    for n, of_n in zip(range(8, looks + 1, 8), limits[1:], strict=True):
        k = counts[:, n - 1]
        low, high = np.array(of_n)[k].T
        left |= (low > share) | (high < share)
        once |= (binom.cdf(k, n, share) < alpha / 2) | (binom.sf(k - 1, n, share) < alpha / 2)
    assert 0 < left.mean() <= alpha + 2 * (alpha * (1 - alpha) / runs) ** 0.5
    assert once.mean() > 2 * alpha  # the exact interval, made for one look


@pytest.mark.parametrize(("covered", "total", "alpha"), [(-1, 5, 0.05), (6, 5, 0.05), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_counts_are_refused(covered: int, total: int, alpha: float) -> None:
    with pytest.raises(BadInput):
        coverage_interval(covered, total, alpha)
