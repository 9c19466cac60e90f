import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.consistency import DOWN_WEIGHT, DROP, KEEP, agree, to_ask
from proxy.errors import BadInput
from router.evaluators import evaluator

MARGINS = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=30)


@given(MARGINS, st.integers(0, 40))
def test_the_least_sure_rows_are_asked_for(margins: list[float], budget: int) -> None:
    asked = to_ask(margins, budget)
    judged = [place for place, margin in enumerate(margins) if not math.isnan(margin)]
    assert len(asked) == min(budget, len(judged))
    assert asked == sorted(set(asked))
    assert set(asked) <= set(judged)
    left = [margins[place] for place in judged if place not in asked]
    assert max((margins[place] for place in asked), default=0) <= min(left, default=1)


def test_of_equals_the_first_is_asked_for() -> None:
    assert to_ask([0.5, 0.1, 0.5, 0.1], 3) == [0, 1, 3]


@pytest.mark.parametrize(
    ("repeats", "action", "weight"),
    [
        (["Billing.", "billing", "billing"], KEEP, 1),
        (["billing", "billing", "delivery"], DOWN_WEIGHT, 2 / 3),
        (["billing", "delivery"], DOWN_WEIGHT, 0.5),
        (["billing", "delivery", "delivery"], DROP, 0),
    ],
)
def test_what_follows_from_the_repeats(repeats: list[str], action: str, weight: float) -> None:
    found = agree({}, "billing", repeats, evaluator("label"))
    assert (found.action, found.weight) == (action, pytest.approx(weight))


@given(st.lists(st.sampled_from(["1", "1.0", "2"]), min_size=1))
def test_weights_never_exceed_the_agreement(repeats: list[str]) -> None:
    found = agree({}, "1", repeats, evaluator("number"))
    assert 0 <= found.weight <= found.mean <= 1
    assert found.mean == pytest.approx(sum(one != "2" for one in repeats) / len(repeats))


def test_what_cannot_be_asked_or_compared_is_refused() -> None:
    with pytest.raises(BadInput, match="0 or more"):
        to_ask([0.1], -1)
    with pytest.raises(BadInput, match="nobody asked"):
        agree({}, "billing", [], evaluator("label"))
