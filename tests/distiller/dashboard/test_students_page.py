from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.course import Course, Point, telling
from distiller.dashboard.student_view import Student
from distiller.dashboard.students_page import loss_rows, sorted_by, training_mark
from tests.distiller.dashboard.bundles import sealed
from tests.distiller.dashboard.houses import House, MakeHouse
from tests.router.conftest import TASK, insert, known

EVIL = "<img src=x onerror=alert(1)>"


def two(made: House) -> tuple[str, str]:
    assert made.log is not None
    ids = insert(made.log, ["where is my order", "x"])
    line = {"exchange": ids[0], "teacher": "billing", "text": "billing", "verdict": 1.0}
    one = sealed(made.settings, [line], ids, losses=[2.0, 1.0])
    tried = [{"kind": "adapter", "base": None, "rank": 8, "score": 0.5, "coverage": None, "seconds": 3.0, "why": EVIL}]
    other = sealed(made.settings, [line | {"text": f"billing {EVIL}", "verdict": 0.0}], weights="v", tried=tried)
    known(made.log, one.id, bundle=str(one.path))
    made.readers.forget()  # A page may be some seconds old.
    return one.id, other.id


async def test_all_students_are_listed_and_can_be_sorted_and_narrowed(house: MakeHouse) -> None:
    made = house()
    assert "There are none yet" in await made.text("/ui/students")
    one, other = two(made)
    text = await made.text("/ui/students?sort=score&way=up")
    for part in (one, other, TASK, "adapter", "smol, rank 16", "0.9", "0.25", "no candidate", "shadow", "75%"):
        assert part in text, part
    assert one not in await made.text("/ui/students?task=other")
    assert (await made.get("/ui/students?sort=__class__&way=x")).status_code == 200


async def test_one_student_says_where_it_comes_from(house: MakeHouse) -> None:
    made = house()
    one, other = two(made)
    text = await made.text(f"/ui/students/{one}")
    for part in (
        "Learned from 2 exchanges",
        "weights.bin",
        "clean",
        "none: it grew from the base",
        "step 1: 2, step 2: 1",
    ):
        assert part in text, part
    page = (await made.get(f"/ui/students/{other}")).text
    assert "<img src=x" not in page
    assert "&lt;img" in page
    assert (await made.get("/ui/students/student-9")).status_code == 400


async def test_two_are_compared(house: MakeHouse) -> None:
    made = house()
    one, other = two(made)
    assert "Answers that differ" not in await made.text("/ui/students/compare")
    page = (await made.get(f"/ui/students/compare?one={one}&other={other}")).text
    assert "<ins> &lt;img src=x onerror=alert(1)&gt;</ins>" in page
    assert "<img src=x" not in page
    text = await made.text(f"/ui/students/compare?one={one}&other={other}")
    assert "1 of 1 differ" in text
    assert "1 exchanges were answered by both" in text
    assert (await made.get(f"/ui/students/compare?one={one}&other=nobody")).status_code == 400


async def test_a_training_is_shown_while_it_runs_and_afterwards(house: MakeHouse) -> None:
    made = house()
    before = training_mark(made.settings.courses)
    with telling(made.settings.courses, "triage", lambda *_: None) as course:
        course("training", 1, 4, 2.5, 100)
        begun = training_mark(made.settings.courses)
        course("training", 4, 4, 1.5, 400)
        text = await made.text("/ui/students")
        assert ("Training now" in text, "training: 4 of 4" in text) == (True, True)
        assert ("400 tokens read" in text, "loss 1.5 nats a token" in text) == (True, True)
        course.scored("adapter", "smol", 16, 0.9, 0.5)
    assert len({str(before), str(begun), str(training_mark(made.settings.courses))}) == 3
    text = await made.text("/ui/students")
    assert ("Training now" in text, "Trained lately" in text) == (False, True)
    assert "adapter on smol, rank 16: agrees 0.9 on the holdout, would answer 50%" in text


def test_losses_are_drawn_by_training(tmp_path: Path) -> None:
    points = [
        Point(1, "encoder", 1, 9, 3.0), Point(2, "encoder", 9, 9, 2.0), Point(3, "encoder", 1, 5, 2.9),
        Point(3, "encoder", 5, 5, 1.0), Point(4, "holdout", 1, 1), Point(5, "training", 1, 1, 0.5, 9),
    ]  # fmt: skip
    course = Course("a", "t", datetime.now(UTC), tuple(points), (), False)
    assert loss_rows(course) == {
        "encoder": [(1, "1", [3.0]), (9, "9", [2.0])], "encoder, again (2)": [(1, "1", [2.9]), (5, "5", [1.0])],
        "training": [(1, "1", [0.5])],
    }  # fmt: skip


@pytest.mark.parametrize(("way", "scores"), [("up", [0.1, 0.9, None]), ("down", [0.9, 0.1, None])])
def test_what_is_unknown_comes_last(way: str, scores: list[float | None]) -> None:
    def one(score: float | None) -> Student:
        return Student("s", "t", "k", "", None, None, None, None, None, score, None, None, None, None, None)

    assert [each.score for each in sorted_by([one(None), one(0.9), one(0.1)], "score", way)] == scores
