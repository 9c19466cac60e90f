from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.row_groups import GUESS, LANGUAGE, TEACHER, USUAL, groups
from tests.distiller.test_curate import row

GERMAN, ENGLISH, CHINESE = "wo ist der Bus und wo ist die Bahn", "where is the bus and what is it", "公共汽车在哪里"


def test_what_was_recorded_counts_and_the_rest_is_guessed_in_the_same_words() -> None:
    rows = [row(1, ENGLISH, lang="de", teacher="eu"), row(2, GERMAN), row(3, CHINESE)]
    found = groups(rows)
    assert (found.by, found.names) == (LANGUAGE, ("de", "de", "zh"))
    assert found.several
    assert not groups(rows[:2]).several


def test_teachers_are_the_groups_where_no_language_is_recorded_for_them() -> None:
    found = groups([row(1, GERMAN, teacher="eu"), row(2, ENGLISH)])
    assert (found.by, found.names, found.several) == (TEACHER, ("eu", USUAL), True)


def test_a_guess_needs_two_languages_that_are_told_and_frequent() -> None:
    short = [row(place) for place in range(30)]
    found = groups([row(100, ENGLISH), row(101, ENGLISH), *short])
    assert (found.by, set(found.names), found.several) == (GUESS, {"en", "Latin script"}, False)
    both = [row(place, text) for place, text in enumerate([ENGLISH, ENGLISH, GERMAN, GERMAN] * 2)]
    assert groups([*both, *short]).several
    assert not groups([row(100, GERMAN), *(row(place, ENGLISH) for place in range(30))]).several


@given(st.lists(st.tuples(st.sampled_from([None, "de", "fr"]), st.sampled_from([None, "a", "b"])), max_size=12))
def test_every_row_has_a_group_and_equal_rows_the_same(told: list[tuple[str | None, str | None]]) -> None:
    rows: list[Recorded] = [replace(row(1), lang=lang, teacher=teacher) for lang, teacher in told]
    names = groups(rows).names
    assert len(names) == len(rows)
    assert len(set(zip(told, names, strict=True))) == len(set(told))
