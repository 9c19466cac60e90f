import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import Curation, curate
from distiller.traits import RARE, Repeats, balance, languages, repeats
from tests.distiller.test_curate import LONG, row


def test_labels_are_counted_with_how_even_they_are() -> None:
    found = balance(["a"] * 8 + ["b"] * 8)
    assert found is not None
    assert (found.labels, found.largest, found.largest_share, found.rare) == (2, "a", 0.5, 0)
    assert found.evenness == pytest.approx(1)
    assert balance([]) is None
    uneven = balance(["a"] * 20 + ["b"] * RARE + ["c"] * (RARE - 1))
    assert uneven is not None
    assert (uneven.rare, uneven.evenness < 1) == (1, True)


@given(st.lists(st.sampled_from("abcde"), min_size=1))
def test_evenness_is_a_share(labels: list[str]) -> None:
    found = balance(labels)
    assert found is not None
    assert 0 <= found.evenness <= 1 + 1e-9
    assert 1 / found.labels <= found.largest_share <= 1
    assert found.rare <= found.labels == len(set(labels))


def test_repeats_are_shares_of_what_could_have_been_learned() -> None:
    rows = [
        row(1, "same"),
        row(2, "same"),
        row(3, "other", "a"),
        row(4, "other", "b"),
        row(5, LONG),
        row(6, f"{LONG}."),
    ]
    assert repeats(curate([*rows, row(7, status=500)])) == Repeats(1 / 6, 1 / 6, 1 / 4)
    assert repeats(Curation((), {"error": 3})) == Repeats(0, 0, 0)


def test_languages_are_shares_the_most_frequent_first() -> None:
    rows = [row(1, "where is my parcel and what of the refund"), row(2, "what is the price of it and for you")]
    found = languages([*rows, row(3, "wo ist mein Paket und die Rechnung bitte")])
    assert list(found.items()) == [("English", 2 / 3), ("German", 1 / 3)]
    assert languages([]) == {}
