import json
import multiprocessing
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.course import KEPT, MANY, Course, Point, Scored, Telling, courses, read, telling
from proxy.errors import Refused


class Clock:
    """Seconds that pass when told so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def only(folder: Path) -> Course:
    (found,) = courses(folder)
    return found


def test_what_was_told_is_passed_on_and_can_be_read_while_it_goes_on_and_afterwards(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with telling(tmp_path, "triage", lambda *step: seen.append(step)) as course:
        course("base model", 0, 1)
        course("training", 1, 2, 2.5, 100)
        course("training", 2, 2, 1.5, 180)
        course.scored("adapter", "smol", 16, 0.9, 0.75)
        now = only(tmp_path)
        assert (now.task, now.running, now.student, now.failed) == ("triage", True, None, None)
        course.write(student="student-1")
        assert not only(tmp_path).running
    assert seen == [("base model", 0, 1), ("training", 1, 2), ("training", 2, 2)]
    done = only(tmp_path)
    assert [(p.what, p.done, p.of, p.loss, p.tokens) for p in done.points] == [
        ("base model", 0, 1, None, None), ("training", 1, 2, 2.5, 100), ("training", 2, 2, 1.5, 180),
    ]  # fmt: skip
    assert [(one.kind, one.base, one.rank, one.score, one.coverage) for one in done.scored] == [
        ("adapter", "smol", 16, 0.9, 0.75)
    ]
    assert (done.running, done.student, done.failed) == (False, "student-1", None)
    assert done.seconds == max(one.seconds for one in done.scored)


def test_lines_are_seldom_and_losses_between_two_are_averaged(tmp_path: Path) -> None:
    clock = Clock()
    with (tmp_path / "a.jsonl").open("wb", buffering=0) as file:
        course = Telling(file, lambda *_: None, clock)
        for step in range(1, 8):
            clock.now += 0.2
            course("training", step, 7, float(step))
        course("holdout", 1, 9)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["done"], line.get("loss"), line["seconds"]) for line in lines] == [
        (1, 1.0, 0.2), (4, 3.0, 0.8), (7, 6.0, 1.4), (1, None, 1.4),
    ]  # fmt: skip


def test_a_long_course_is_told_ever_more_rarely(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "a.jsonl"
    with path.open("wb", buffering=0) as file:
        course = Telling(file, lambda *_: None, clock)
        for step in range(8 * MANY):
            clock.now += 0.6
            course("training", step, 10 * MANY, 1.0)
    assert MANY < len(path.read_text().splitlines()) < 4 * MANY


def refused(course: Telling) -> None:
    raise Refused("too few")


def interrupted(course: Telling) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [(refused, Refused, "too few"), (interrupted, KeyboardInterrupt, "interrupted: KeyboardInterrupt")],
)
def test_why_nothing_came_of_it_is_kept(
    tmp_path: Path, work: Callable[[Telling], None], error: type[BaseException], said: str
) -> None:
    with pytest.raises(error), telling(tmp_path, "triage", lambda *_: None) as course:
        work(course)
    assert (only(tmp_path).failed, only(tmp_path).running) == (said, False)


def _killed(folder: str) -> None:
    with telling(Path(folder), "triage", lambda *_: None) as course:
        course("training", 1, 9, 1.0)
        os._exit(9)  # As a kill does: nothing is written on the way out.


def test_of_one_that_was_killed_nobody_says_it_goes_on(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=[str(tmp_path)])
    process.start()
    process.join()
    found = only(tmp_path)
    assert (found.running, len(found.points)) == (False, 1)
    assert found.failed == "it ended without a word: its process was killed"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        with telling(tmp_path, str(number), lambda *_: None) as course:
            course.write(student=f"student-{number}")
    found = courses(tmp_path)
    assert (len(found), found[0].task, found[-1].task) == (KEPT, str(KEPT + 2), "3")


def test_where_nothing_can_be_written_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with telling(tmp_path / "file", "triage", lambda *_: None) as course:
        course("training", 1, 1)
        course.write(student="student-1")
    full = Path("/dev/full")
    if full.exists():
        with full.open("wb", buffering=0) as file:
            Telling(file, lambda *_: None)("training", 1, 1)
    assert courses(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("points", "speed"),
    [
        ([], None), ([Point(1, "a", 1, 9, 1.0, 50)], None), ([Point(1, "a", 1, 9), Point(2, "a", 2, 9)], None),
        ([Point(1, "a", 1, 9, 1.0, 50), Point(3, "a", 5, 9, 1.0, 250), Point(9, "b", 1, 1)], 100.0),
        ([Point(1, "a", 9, 9, 1.0, 50), Point(3, "a", 1, 9, 1.0, 10), Point(5, "a", 5, 9, 1.0, 110)], 50.0),
        ([Point(1, "a", 1, 9, 1.0, 50), Point(1, "a", 2, 9, 1.0, 90)], None),
    ],
)  # fmt: skip
def test_how_fast_tokens_are_read(points: list[Point], speed: float | None) -> None:
    assert Course("a", "t", datetime.now(UTC), tuple(points), (), True).tokens_per_second == speed


def test_what_is_no_course_is_left_out(tmp_path: Path) -> None:
    started = '{"task": "t", "started": "2026-11-28T00:00:00+00:00"}\n'
    for name, text in {"a": "", "b": "[]", "c": '{"task": 1}', "d": started + '{"what": "x"}', "e": "\0"}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    assert courses(tmp_path) == []
    half = tmp_path / "f.jsonl"
    half.write_text(started + '{"seconds": 1, "what": "x", "done": 1, "of": 2}\n{"seconds": 2, "wh')
    found = read(half)
    assert found is not None
    assert found.points == (Point(1, "x", 1, 2),)
    half.write_text(started + '{"seconds": 3, "kind": "head", "score": 1.0, "coverage": 0.5}\n')
    assert (read(half) or found).scored == (Scored(3, "head", None, None, 1.0, 0.5),)
    assert read(tmp_path / "gone.jsonl") is None
