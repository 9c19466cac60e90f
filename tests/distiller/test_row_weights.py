from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.row_weights import weigh, weigh_rows
from distiller.settings import DistillerSettings
from proxy.errors import BadInput
from tests.distiller.test_curate import START, row


def days(*ages: float) -> list[object]:
    return [START - timedelta(days=age) for age in ages]


def test_without_settings_every_row_counts_the_same() -> None:
    found = weigh(days(0, 10, 100), ["a", "a", "b"])
    assert (found.weights.tolist(), found.effective) == ([1, 1, 1], pytest.approx(3))


def test_a_half_life_halves() -> None:
    found = weigh(days(0, 30, 60), half_life=30)
    assert found.weights == pytest.approx(np.array([4, 2, 1]) * 3 / 7)
    assert found.effective == pytest.approx(49 / 21)


def test_full_balance_gives_every_label_the_same_weight_and_half_of_it_the_root() -> None:
    labels = ["a"] * 9 + ["b"]
    assert weigh(days(*[0] * 10), labels, balance=1).weights[-1] == pytest.approx(5)
    half = weigh(days(*[0] * 10), labels, balance=0.5).weights
    assert half[-1] / half[0] == pytest.approx(3)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1),
    st.floats(1, 20),
)
def test_a_groups_rows_together_count_as_they_would_be_sampled_at_that_temperature(
    counts: dict[str, int], temperature: float
) -> None:
    names = [name for name, count in counts.items() for _ in range(count)]
    found = weigh(days(*[0] * len(names)), names=names, temperature=temperature)
    total = sum(count ** (1 / temperature) for count in counts.values())
    for name, count in counts.items():
        own = [weight for one, weight in zip(names, found.weights, strict=True) if one == name]
        assert sum(own) / len(names) == pytest.approx(count ** (1 / temperature) / total)
        assert max(own) == pytest.approx(min(own))


def test_balances_of_labels_and_of_groups_multiply() -> None:
    labels, names = ["a", "a", "b", "b"], ["en", "en", "en", "de"]
    both = weigh(days(*[0] * 4), labels, balance=1, names=names, temperature=2).weights
    assert both == pytest.approx(weigh(days(*[0] * 4), names=names, temperature=2).weights)
    assert both[3] / both[0] == pytest.approx(3**0.5)


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.sampled_from("abcd")), min_size=1, max_size=40),
    st.floats(0, 1e4),
    st.floats(0, 1),
)
def test_invariants(rows: list[tuple[float, str]], half_life: float, balance: float) -> None:
    ages, labels = zip(*rows, strict=True)
    found = weigh(days(*ages), labels, half_life, balance)
    weights = found.weights
    assert weights.mean() == pytest.approx(1)
    assert (weights >= 0).all()
    assert 1 - 1e-9 <= found.effective <= len(rows) + 1e-9
    for label in set(labels):
        own = [(age, weight) for age, one, weight in zip(ages, labels, weights, strict=True) if one == label]
        ordered = [weight for _, weight in sorted(own)]
        assert all(newer >= older for newer, older in pairwise(ordered))
    assert np.array_equal(weigh(days(*ages), labels, half_life, balance).weights, weights)


@pytest.mark.parametrize(
    ("rows", "labels", "half_life", "balance"),
    [
        (0, [], 0, 0), (2, ["a"], 0, 0), (1, ["a"], -1, 0), (1, ["a"], float("nan"), 0), (1, ["a"], 0, 1.1),
        (1, ["a"], 0, -0.1), (1, None, 0, 0.5),
    ],
)  # fmt: skip
def test_what_cannot_be_weighed_is_refused(
    rows: int, labels: list[str] | None, half_life: float, balance: float
) -> None:
    with pytest.raises(BadInput):
        weigh(days(*[0] * rows), labels, half_life, balance)


@pytest.mark.parametrize(("names", "temperature"), [(["a"], 0.5), (["a"], float("nan")), (["a", "b"], 2.0)])
def test_groups_that_cannot_be_weighed_are_refused(names: list[str], temperature: float) -> None:
    with pytest.raises(BadInput):
        weigh(days(0), names=names, temperature=temperature)


def test_languages_are_weighed_for_every_evaluator_where_there_are_two() -> None:
    rows = [row(0, lang="en"), row(1, lang="en"), row(2, lang="en"), row(3, lang="de")]
    for evaluator in ("label", "json"):
        found = weigh_rows(rows, evaluator, DistillerSettings(language_temperature=1e9))
        assert found is not None
        assert found.weights == pytest.approx(np.array([2, 2, 2, 6]) / 3)
    assert weigh_rows(rows[:3], "json", DistillerSettings(language_temperature=1e9)) is None
    assert weigh_rows(rows, "json", DistillerSettings()) is None


def test_the_settings_say_what_counts_and_only_labels_are_balanced() -> None:
    day = 24 * 60
    rows = [row(0, answer="a"), row(day, answer="A."), row(2 * day, answer="b")]
    assert weigh_rows(rows, "label", DistillerSettings()) is None
    recent = weigh_rows(rows, "json", DistillerSettings(half_life_days=1.0, class_balance=1.0))
    assert recent is not None
    assert recent.weights == pytest.approx(np.array([1, 2, 4]) * 3 / 7)
    assert weigh_rows(rows, "json", DistillerSettings(class_balance=1.0)) is None
    balanced = weigh_rows(rows, "label", DistillerSettings(class_balance=1.0))
    assert balanced is not None
    assert balanced.weights == pytest.approx(np.array([0.75, 0.75, 1.5]))  # "A." is the label "a".
