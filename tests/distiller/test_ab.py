import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller.ab import MOST_LOST, compare
from proxy.errors import BadInput

SHARES = st.floats(0, 1).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=60)


def binary(both: int, won: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    one = [1.0] * both + [0.0] * won + [1.0] * lost + [0.0] * neither
    other = [1.0] * both + [1.0] * won + [0.0] * lost + [0.0] * neither
    return one, other


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.integers(0, 5))
def test_swapping_the_two_swaps_the_signs(pairs: list[tuple[float, float]], seed: int) -> None:
    one, other = (list(side) for side in zip(*pairs, strict=True))
    there, back = compare(one, other, seed), compare(other, one, seed)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.won, there.lost) == (back.lost, back.won)
    assert there.p == pytest.approx(back.p, abs=0.03)
    assert -1 <= there.lower <= there.upper <= 1
    assert there.lower <= there.difference + 1e-9
    assert there == compare(one, other, seed)
    assert not (there.better and back.better)


def test_the_test_is_mcnemars_where_verdicts_are_right_or_wrong() -> None:
    found = compare(*binary(100, 9, 1, 40), seed=0)
    assert (found.n, found.won, found.lost, found.test) == (150, 9, 1, "McNemar, exact")
    assert found.p == pytest.approx(22 / 1024)  # 2 * (C(10,0) + C(10,1)) / 2^10
    assert found.difference == pytest.approx(8 / 150)
    assert found.better


def test_one_lucky_question_keeps_nothing() -> None:
    found = compare(*binary(60, 1, 0, 39), seed=0)
    assert found.difference > 0
    assert found.lower < -MOST_LOST
    assert not found.better


def test_graded_verdicts_are_tested_by_flipping_signs() -> None:
    draw = random.Random(1)
    one = [draw.random() * 0.6 for _ in range(80)]
    better = compare(one, [min(1.0, each + draw.random() * 0.3) for each in one], seed=0)
    assert (better.test, better.better) == ("sign flips", True)
    assert better.p < 0.001
    noise = compare(one, [min(1.0, max(0.0, each + draw.uniform(-0.2, 0.2))) for each in one], seed=0)
    assert noise.p > 0.05


def test_equal_students_differ_in_nothing() -> None:
    found = compare([1.0, 0.0, 0.5], [1.0, 0.0, 0.5], seed=0)
    assert (found.difference, found.p, found.test, found.better) == (0.0, 1.0, "none differs", False)


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Of 200 pairs of students that differ by 0.05 in truth, the interval must miss that about 1 time in 20."""
    draw, missed = random.Random(7), 0
    for seed in range(200):
        pairs = [draw.choices([(1, 1), (0, 1), (1, 0), (0, 0)], [50, 15, 10, 25])[0] for _ in range(120)]
        found = compare([float(a) for a, _ in pairs], [float(b) for _, b in pairs], seed)
        missed += not found.lower <= 0.05 <= found.upper
    assert missed <= 20


def test_confidences_give_calibration_of_both() -> None:
    found = compare([1.0, 0.0], [1.0, 1.0], 0, [1.0, 0.0], [0.5, 0.5])
    assert found.one_reliability is not None
    assert found.other_reliability is not None
    assert found.one_reliability.brier == 0.0
    assert found.other_reliability.brier == pytest.approx(0.25)


@pytest.mark.parametrize(("one", "other"), [([], []), ([1.0], [1.0, 0.0]), ([1.5], [0.0])])
def test_what_cannot_be_paired_is_refused(one: list[float], other: list[float]) -> None:
    with pytest.raises(BadInput):
        compare(one, other, 0)
