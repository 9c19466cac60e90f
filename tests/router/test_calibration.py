import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from proxy.errors import BadInput
from router.calibration import Reliability, apply, calibrated_elsewhere, fit, reliability

shares = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
holdouts = st.lists(st.tuples(shares, st.sampled_from([0.0, 0.25, 1.0]) | shares), min_size=1, max_size=60)


def columns(rows: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [sure for sure, _ in rows], [verdict for _, verdict in rows]


@given(holdouts, st.lists(shares, min_size=2, max_size=30))
def test_a_probability_lies_in_0_1_and_never_falls(rows: list[tuple[float, float]], asked: list[float]) -> None:
    knots = fit(*columns(rows))
    values = [apply(knots, sure) for sure in sorted([*asked, *columns(rows)[0]])]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values)


@given(holdouts, st.integers(0, 1000), st.integers(0, 1000))
def test_what_the_confidence_tells_apart_stays_apart(rows: list[tuple[float, float]], one: int, other: int) -> None:
    knots = fit(*columns(rows))
    low, high = sorted((apply(knots, one / 1000), apply(knots, other / 1000)))
    assert (low < high) == (one != other)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40))
def test_the_blocks_are_the_isotonic_regression(verdicts: list[float]) -> None:
    confidences = [place / len(verdicts) for place in range(len(verdicts))]
    expected = isotonic_regression(verdicts)
    knots = fit(confidences, verdicts)
    assert [value for _, value in knots] == pytest.approx(sorted(set(expected.x.round(12))))
    assert len(knots) == len(expected.blocks) - 1


@given(holdouts)
def test_rows_in_any_order_give_the_same_fit(rows: list[tuple[float, float]]) -> None:
    again = rows.copy()
    random.Random(1).shuffle(again)
    assert fit(*columns(again)) == fit(*columns(rows))


def test_without_rows_a_confidence_stays_as_it_is() -> None:
    assert fit([], []) == ()
    assert apply((), 0.3) == 0.3


def test_a_student_that_is_sure_and_wrong_is_found_out() -> None:
    draw = random.Random(2)
    sure = [draw.random() for _ in range(2000)]
    verdicts = [float(draw.random() < one / 2) for one in sure]  # half as often right as it believes
    knots = fit(sure, verdicts)
    assert apply(knots, 0.9) == pytest.approx(0.45, abs=0.06)
    before, after = reliability(sure, verdicts), reliability(calibrated_elsewhere(sure, verdicts), verdicts)
    assert before is not None
    assert after is not None
    assert before.ece == pytest.approx(0.25, abs=0.03)
    assert after.ece < 0.06
    assert after.brier < before.brier


def test_reliability_of_known_rows() -> None:
    assert reliability([], []) is None
    assert reliability([1.0, 1.0], [1.0, 1.0]) == Reliability(0.0, 0.0)
    assert reliability([0.9] * 10, [0.0] * 10) == Reliability(pytest.approx(0.9), pytest.approx(0.81))


@given(
    st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1), st.randoms()
)
def test_reliability_does_not_know_in_which_order_rows_came(
    rows: list[tuple[float, float]], chance: random.Random
) -> None:
    shuffled = chance.sample(rows, len(rows))
    one, other = (reliability(*zip(*each, strict=True)) for each in (rows, shuffled))
    assert one is not None
    assert other is not None
    assert (one.ece, one.brier) == (pytest.approx(other.ece), pytest.approx(other.brier))


def test_equals_are_told_apart_by_no_bin() -> None:
    assert reliability([0.5] * 20, [0.0, 1.0] * 10) == Reliability(pytest.approx(0.0, abs=1e-9), pytest.approx(0.25))


def test_a_row_does_not_calibrate_itself() -> None:
    assert calibrated_elsewhere([0.5, 0.5], [1.0, 0.0]) == [pytest.approx(0.0, abs=1e-3), pytest.approx(1.0, abs=1e-3)]
    assert calibrated_elsewhere([0.5], [1.0]) == [0.5]


@pytest.mark.parametrize(
    ("confidences", "verdicts"), [([0.5], []), ([float("nan")], [1.0]), ([0.5], [1.5]), ([-0.1], [1.0])]
)
def test_bad_input(confidences: list[float], verdicts: list[float]) -> None:
    with pytest.raises(BadInput):
        fit(confidences, verdicts)
    with pytest.raises(BadInput):
        reliability(confidences, verdicts)
