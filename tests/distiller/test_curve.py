from collections.abc import Sequence
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller.curve import FARTHEST, FLATTEST, RESAMPLES, STEEPEST, Law, Measured, fit_law, learning_curve, measure
from proxy.errors import BadInput

SIZES = (125, 250, 500, 1000)


def verdicts(score: float, holdout: int = 1000) -> np.ndarray:
    return (np.arange(holdout) < round(score * holdout)).astype(float)


def curve(ceiling: float, gap: float, exponent: float) -> list[Measured]:
    law = Law(ceiling, gap, exponent, SIZES[-1])
    return [Measured(size, verdicts(law.at(size))) for size in SIZES]


@pytest.mark.parametrize(("ceiling", "gap", "exponent"), [(0.95, 0.1, 0.5), (0.9, 0.05, 1.0), (0.8, 0.2, 0.35)])
def test_a_law_is_found_again(ceiling: float, gap: float, exponent: float) -> None:
    law = Law(ceiling, gap, exponent, SIZES[-1])
    found = fit_law(SIZES, np.array([law.at(size) for size in SIZES]))
    assert found.at(4000) == pytest.approx(law.at(4000), abs=0.005)
    assert found.ceiling == pytest.approx(ceiling, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
@settings(max_examples=60)
def test_a_fitted_curve_never_falls_and_stays_below_its_ceiling(scores: list[float]) -> None:
    rows = [100 * 2**step for step in range(len(scores))]
    law = fit_law(rows, np.array(scores))
    ahead = [law.at(size) for size in (*rows, 10 * rows[-1], 1000 * rows[-1])]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(ahead))
    assert max(ahead) <= law.ceiling <= 1
    assert law.gap >= 0
    assert FLATTEST <= law.exponent <= STEEPEST


@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(FLATTEST, STEEPEST), st.floats(0.01, 1))
def test_the_rows_needed_reach_the_target_and_no_fewer_do(
    ceiling: float, gap: float, exponent: float, target: float
) -> None:
    law = Law(ceiling, gap, exponent, 1000)
    needed = law.needed(target)
    if needed == inf:
        assert law.at(1000 * FARTHEST) < target + 1e-9
    else:
        assert 1000 <= needed <= 1000 * FARTHEST * (1 + 1e-9)
        assert law.at(needed) >= target - 1e-9
        assert needed == 1000 or law.at(0.99 * needed) < target


def test_more_rows_are_predicted_with_an_interval_round_them() -> None:
    found = learning_curve(curve(0.95, 0.1, 0.5), 0.9)
    assert found.points[-1] == (1000, 0.85)
    assert found.more == pytest.approx(3000, rel=0.1)
    low, high = found.more_interval
    assert low is not None
    assert 0 < low < found.more
    assert high is None or high >= found.more
    assert 0.5 < found.reached <= 1
    assert found.gain == pytest.approx(0.029, abs=0.003)
    assert found.gain_interval[0] < found.gain < found.gain_interval[1]
    assert "needs about" in found.words
    assert "twice the rows gain 2.9 points" in found.words


def test_what_levels_off_below_the_target_is_said_and_so_is_what_is_reached() -> None:
    flat = learning_curve(curve(0.8, 0.001, 1.0), 0.95)
    assert (flat.more, flat.more_interval, flat.reached) == (None, (None, None), 0)
    assert "levels off at 0.80" in flat.words
    assert "less than half a point" in flat.words
    there = learning_curve(curve(0.97, 0.001, 1.0), 0.95)
    assert (there.more, there.reached) == (0, 1)
    assert "is reached with what there is" in there.words


def test_the_same_holdout_gives_the_same_curve() -> None:
    assert learning_curve(curve(0.9, 0.1, 0.5), 0.85, 3) == learning_curve(curve(0.9, 0.1, 0.5), 0.85, 3)
    assert RESAMPLES >= 100


@given(st.integers(2, 200), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
def test_shares_are_nested_and_in_order(count: int, seeds: list[int]) -> None:
    asked: list[list[int]] = []

    def fit_and_score(rows: Sequence[int]) -> list[float]:
        asked.append(list(rows))
        return [len(rows) / count, 0.5]

    found = measure(range(count), fit_and_score, seeds=seeds)
    assert all(rows == sorted(set(rows)) for rows in asked)
    assert asked[-1] == list(range(count))
    assert sum(len(rows) == count for rows in asked) == 1
    smaller = asked[:-1]
    for place, rows in enumerate(smaller[len(seeds) :], len(seeds)):
        assert set(smaller[place - len(seeds)]) < set(rows)
    assert [one.verdicts[0] for one in found] == pytest.approx([one.rows / count for one in found])
    assert [one.rows for one in found] == sorted({one.rows for one in found})


def test_verdicts_are_averaged_over_seeds() -> None:
    found = measure(range(8), lambda rows: [float(0 in rows)], shares=(0.5, 1), seeds=range(40))
    assert 0.2 < found[0].score < 0.8
    assert found[1].score == 1


def test_what_makes_no_curve_is_refused() -> None:
    with pytest.raises(BadInput, match="record more"):
        measure([1], lambda rows: [1.0])
    with pytest.raises(BadInput, match="two numbers of rows"):
        learning_curve(curve(0.9, 0.1, 0.5)[:1], 0.9)
    with pytest.raises(BadInput, match="same holdout"):
        learning_curve([Measured(1, verdicts(0.5, 10)), Measured(2, verdicts(0.5, 20))], 0.9)
    with pytest.raises(BadInput, match="target"):
        learning_curve(curve(0.9, 0.1, 0.5), 0.0)
