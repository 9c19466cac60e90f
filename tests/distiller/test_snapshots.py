from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.snapshots import changes, outdated, snapshots
from tests.distiller.test_curate import row

MODELS = st.sampled_from(["", "a-1", "a-2", "b-1"])


def answer(number: int, asked: str, model: str, **changes: Any) -> Recorded:
    return row(number, request={"model": asked}, model=model, **changes)


def test_a_snapshot_that_took_over_is_told() -> None:
    rows = [answer(0, "a", "a-1"), answer(1, "a", "a-1"), answer(2000, "a", "a-2"), answer(2001, "b", "b-1")]
    found = snapshots(reversed(rows))
    assert [(one.asked, one.model, one.rows, one.current) for one in found] == [
        ("a", "a-1", 2, False), ("a", "a-2", 1, True), ("b", "b-1", 1, True),
    ]  # fmt: skip
    assert changes(found) == [
        "the teacher changed: a-1 gave 2 of the answers to a, the last on 2026-03-01, and now a-2 gives them, first on "
        "2026-03-02"
    ]
    assert [outdated(one, found) for one in rows] == [True, True, False, False]


def test_two_teachers_side_by_side_are_no_change_and_what_was_not_answered_tells_nothing() -> None:
    rows = [answer(0, "a", "a-1"), answer(1, "b", "b-1"), answer(2, "a", "a", status=500)]
    assert changes(snapshots(rows)) == []
    assert changes(snapshots([rows[0], answer(4, "a", "a-2", partial=True)])) == []


def test_the_same_name_at_another_teacher_is_another_model() -> None:
    usual = [answer(number, "a", "a-1") for number in (0, 2)]
    rows = [*usual, *(answer(number, "a", "x", teacher="t") for number in (1, 3))]
    found = snapshots(rows)
    assert [(one.teacher, one.model, one.rows, one.current) for one in found] == [
        (None, "a-1", 2, True),
        ("t", "x", 2, True),
    ]
    later = [*rows, answer(4, "a", "x-2", teacher="t")]
    (change,) = changes(snapshots(later))
    assert change.startswith("the teacher t changed: x gave 2 of the answers to a")
    assert [outdated(one, snapshots(later)) for one in later] == [False, False, True, True, False]


@given(st.lists(st.tuples(st.sampled_from("ab"), MODELS), max_size=30))
def test_every_name_has_one_current_snapshot_the_one_of_its_latest_answer(asked: list[tuple[str, str]]) -> None:
    rows = [answer(number, *one) for number, one in enumerate(asked)]
    found = snapshots(rows)
    known = [one for one in rows if one.model]
    assert sum(one.rows for one in found) == len(known)
    latest = {str(one.request["model"]): one.model for one in known}
    assert {one.asked: one.model for one in found if one.current} == latest
    assert len([one for one in found if one.current]) == len(latest)
    assert all(outdated(one, found) == (one.model != latest[str(one.request["model"])]) for one in known)
