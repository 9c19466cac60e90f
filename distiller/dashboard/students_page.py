"""Owns the pages of students: all of them, one with where it comes from, two side by side, and trainings as they run.

Must not compute a figure itself.
"""

from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, Request, Response

from distiller.course import Course, courses
from distiller.dashboard.desk import Desk
from distiller.dashboard.reading import FRESH_SECONDS
from distiller.dashboard.student_view import Student, beside, detail, students, thinned

TRAINING = "training"
"""The event of `/ui/events` when a training has told something new."""
SORTS = ("made", "task", "stage", "kind", "score", "coverage", "size", "usd")
_RECENT = 5  # courses shown that have ended


def students_router(desk: Desk) -> APIRouter:
    """The pages."""
    router, settings = APIRouter(), desk.settings

    @router.get("/students")
    def every(request: Request, task: str = "", sort: str = "made", way: str = "down") -> Response:
        found = desk.readers.now("students", lambda log: students(log, settings), FRESH_SECONDS)
        shown = [one for one in found if task in ("", one.task)]
        told = courses(settings.courses)
        order = (sort if sort in SORTS else "made", "up" if way == "up" else "down")
        return desk.page(
            request, "students.html", students=sorted_by(shown, *order), sort=order, task=task,
            tasks=sorted({one.task for one in found}), running=[one for one in told if one.running],
            ended=[one for one in told if not one.running][:_RECENT], curves=loss_rows,
        )  # fmt: skip

    @router.get("/students/compare")
    def compare(request: Request, one: str = "", other: str = "") -> Response:
        known = desk.readers.now("students", lambda log: students(log, settings), FRESH_SECONDS)
        found = None
        if one and other:
            found = desk.readers.now(
                ("beside", one, other), lambda log: beside(log, settings, one, other), FRESH_SECONDS
            )
        return desk.page(request, "compare.html", known=known, one=one, other=other, found=found)

    @router.get("/students/{student}")
    def single(request: Request, student: str) -> Response:
        found = desk.readers.now(("student", student), lambda log: detail(log, settings, student), FRESH_SECONDS)
        rows = [(step, f"{step:,}", [loss]) for step, loss in found.losses]
        return desk.page(request, "student.html", found=found, losses=rows, curves=loss_rows)

    return router


def sorted_by(found: Sequence[Student], sort: str, way: str) -> list[Student]:
    """By one column; what is unknown comes last, whichever way."""
    known = [one for one in found if getattr(one, sort) not in (None, "")]
    unknown = [one for one in found if getattr(one, sort) in (None, "")]
    return sorted(known, key=lambda one: getattr(one, sort), reverse=way == "down") + unknown


def loss_rows(course: Course) -> dict[str, list[tuple[float, str, list[float | None]]]]:
    """The losses of each training of a course, by what it was called, over its steps, thinned.

    One that begins anew under the same name, as a search for the number of epochs does, is another one.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    last: dict[str, tuple[str, int]] = {}
    for point in course.points:
        if point.loss is None:
            continue
        name, before = last.get(point.what, (point.what, 0))
        if point.done < before:
            name = f"{point.what}, again ({len([key for key in found if key.startswith(point.what)]) + 1})"
        found.setdefault(name, []).append((point.done, point.loss))
        last[point.what] = name, point.done
    return {name: [(step, f"{step:,}", [loss]) for step, loss in thinned(points)] for name, points in found.items()}


def training_mark(folder: Path) -> object:
    """Differs whenever a training has told something; looks at names and sizes only."""
    newest = max(folder.glob("*.jsonl"), default=None)
    try:
        return None if newest is None else (newest.name, newest.stat().st_size)
    except OSError:  # It went just now.
        return None
