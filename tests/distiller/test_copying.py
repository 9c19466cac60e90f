from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from distiller.copying import place, stands


def test_a_value_stands_only_as_whole_words():
    assert stands("rate this album", "album")
    assert not stands("rate these albums", "album")
    assert not stands("rate this album", "Album")
    assert not stands("rate this album", "")


def test_scripts_without_spaces_have_no_whole_words():
    assert stands("有多热", "热")
    assert stands("بأدريانا", "أدريانا")


def test_whole_words_come_before_parts_of_words():
    assert place("london on time", ["on"]) == [7]
    assert place("london", ["on"]) == [1]


def test_equal_values_take_one_place_each_from_the_left():
    assert place("a restaurant far from the restaurant", ["restaurant", "restaurant"]) == [2, 26]
    assert place("one restaurant", ["restaurant", "restaurant"]) is None


def test_the_unambiguous_decides_where_the_ambiguous_stands():
    assert place("two for two people at 2", ["people", "two"]) == [12, 0]
    assert place("two for two people at 2", ["for", "two"]) == [4, 8]
    assert place("new york in new york city", ["new york city", "new york"]) == [12, 0]


def test_what_is_not_there_has_no_place():
    assert place("a text", ["word"]) is None
    assert place("a text", ["text", ""]) is None
    assert place("a text", []) == []


words = st.lists(st.text("ab热é ", min_size=1, max_size=3), min_size=1, max_size=6)


@given(words, st.text("ab热é ", max_size=4))
def test_places_hold_the_values_and_do_not_overlap(values, between):
    text = between.join(values)
    starts = place(text, values)
    if starts is None:  # a greedy choice may leave no room; it must not be a wrong one
        return
    spans = sorted((start, start + len(value)) for start, value in zip(starts, values, strict=True))
    assert all(text[start : start + len(value)] == value for start, value in zip(starts, values, strict=True))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@given(st.lists(st.text("abé热", min_size=1, max_size=5), unique=True, min_size=1, max_size=6))
def test_different_words_are_all_found(values):
    assert place(" ".join(values), values) is not None
