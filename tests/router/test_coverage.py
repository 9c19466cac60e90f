import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadInput
from router.coverage import FEWEST, choose_threshold, coverage_interval
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
def test_a_proposal_is_the_lowest_confidence_that_holds(rows: list[tuple[float, float]], margin: float) -> None:
    confidences, verdicts = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.array([]),) * 2
    found = choose_threshold(confidences, verdicts, margin)
    below = np.unique(confidences) if found is None else np.unique(confidences[confidences < found.value])
    for value in below:  # every larger coverage fails on its own
        covered = verdicts[confidences >= value]
        assert len(covered) < FEWEST or lower_bound(covered, 0.2) <= 1 - margin + 1e-6
    if found:
        covered = verdicts[confidences >= found.value]
        assert found.value in confidences
        assert found.n == len(covered) >= FEWEST
        assert found.coverage == found.n / len(rows)
        assert found.agreement == pytest.approx(covered.mean())
        assert 1 - margin - 1e-6 < found.lower <= found.agreement
        assert found.lower == pytest.approx(lower_bound(covered, 0.2), abs=1e-6)


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


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.001, 0.5))
def test_the_interval_encloses_the_share_and_mirrors(covered: int, rest: int, alpha: float) -> None:
    total = covered + rest
    lower, upper = coverage_interval(covered, total, alpha)
    assert 0 <= lower < upper <= 1
    if total:
        assert lower <= covered / total <= upper
    other = coverage_interval(rest, total, alpha)
    assert (1 - upper, 1 - lower) == pytest.approx(other, abs=1e-9)


def test_the_interval_is_clopper_and_pearsons() -> None:
    assert coverage_interval(0, 0, 0.05) == (0, 1)
    assert coverage_interval(0, 10, 0.05) == pytest.approx((0, 1 - 0.025 ** (1 / 10)))
    assert coverage_interval(10, 10, 0.05) == pytest.approx((0.025 ** (1 / 10), 1))


@pytest.mark.parametrize(("covered", "total", "alpha"), [(-1, 5, 0.05), (6, 5, 0.05), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_counts_are_refused(covered: int, total: int, alpha: float) -> None:
    with pytest.raises(BadInput):
        coverage_interval(covered, total, alpha)
