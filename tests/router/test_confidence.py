import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.confidence import confidence, first

LOGPROBS = st.lists(st.floats(min_value=-50, max_value=0), min_size=1, max_size=40)


def test_is_the_product_of_the_token_probabilities():
    assert confidence([math.log(0.5), math.log(0.25), 0.0]) == pytest.approx(0.125)


def test_without_tokens_nothing_is_known():
    assert confidence([]) == 0.0


def test_rounding_above_zero_never_exceeds_certainty():
    assert confidence([1e-7, 1e-7]) == 1.0


def test_of_the_first_tokens_only_so_many_count_and_all_where_none_are_named():
    logprobs = [math.log(0.5), math.log(0.25), math.log(0.5)]
    assert [confidence(first(logprobs, tokens)) for tokens in (0, 1, 2, 9)] == pytest.approx(
        [0.0625, 0.5, 0.125, 0.0625]
    )


def test_an_impossible_token_makes_the_answer_impossible():
    assert confidence([-0.1, -9999.0]) == 0.0


@given(LOGPROBS, st.floats(min_value=-50, max_value=0))
def test_another_token_never_raises_it(logprobs: list[float], more: float):
    assert 0.0 <= confidence([*logprobs, more]) <= confidence(logprobs) <= 1.0
