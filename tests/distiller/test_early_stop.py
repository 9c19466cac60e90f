import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.early_stop import EarlyStop, best_step, exhausted
from proxy.errors import BadInput

SCORES = st.lists(st.one_of(st.just(math.nan), st.floats(-1, 1)), min_size=1, max_size=8)


@given(SCORES)
def test_the_best_is_the_first_that_nothing_beats(values: list[float]):
    scores = list(enumerate(values, start=1))
    best = values[best_step(scores) - 1]
    numbers = [value for value in values if not math.isnan(value)]
    if numbers:
        assert best == max(numbers)
        assert best not in values[: best_step(scores) - 1]
    else:
        assert best_step(scores) == 1


@given(SCORES, st.integers(1, 3))
def test_it_stops_after_so_many_without_improvement(values: list[float], patience: int):
    """Each number is fed in turn, as in training: the first stop comes `patience` evaluations after the best so far."""
    scores = list(enumerate(values, start=1))
    for count in range(1, len(scores) + 1):
        if exhausted(scores[:count], patience):
            assert count == best_step(scores[:count]) + patience
            break
        assert count < best_step(scores[:count]) + patience


def test_nothing_is_exhausted_before_the_first_evaluation():
    assert not exhausted([], 1)


@pytest.mark.parametrize("change", [{"patience": 0}, {"every": -1}])
def test_what_cannot_work_is_refused(change: dict[str, int]):
    with pytest.raises(BadInput):
        EarlyStop(lambda _: 0.0, **change)
