"""Owns how a frame reads as text: its lines, its columns for a width, tasks filtered and sorted, one task in detail.

Must not know widgets. Nothing is told by colour alone, and what clients chose cannot move the cursor.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from distiller.course import Course
from distiller.frame import Frame
from distiller.needs import needs
from distiller.printable import printable
from distiller.tasks_now import MINUTES, TaskDetail, TaskNow

_NAME_MOST = 40
_MOST_NEEDS = 6
_NO_NAME = "(no task)"


@dataclass(frozen=True, slots=True)
class View:
    """How tasks are listed: by which of SORTS, the largest first unless `backwards`, those with `part` in the name."""

    sort: str = "traffic"
    backwards: bool = False
    part: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; it is shown on terminals of at least `width` cells."""

    title: str
    width: int
    cell: Callable[[TaskNow], str]
    right: bool = True


SORTS: Mapping[str, Callable[[TaskNow], Any]] = MappingProxyType(
    {
        "traffic": lambda task: (task.a_minute, task.exchanges),
        "spend": lambda task: task.usd or 0.0,
        "latency": lambda task: task.slow_ms or 0.0,
        "failures": lambda task: task.failed + task.fallbacks,
        "share": lambda task: task.by_candidate / (task.exchanges or 1),
        "name": lambda task: [-ord(letter) for letter in task.task or ""],  # So that the largest is the first letter.
    }
)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"


def _usd(value: float | None) -> str:
    return "unpriced" if value is None else f"${value:,.4f}" if abs(value) < 1 else f"${value:,.2f}"


def _stage(task: TaskNow) -> str:
    return f"{task.stage} {task.share:.0%}" if task.stage == "canary" else task.stage or "-"


def _spent(task: TaskNow) -> str:
    if not task.unpriced:
        return "-" if task.usd is None else _usd(task.usd)
    return "unpriced" if task.usd is None else f"{_usd(task.usd)} + {task.unpriced:,} unpriced"


COLUMNS = (
    Column("task", 0, lambda task: name_of(task.task), right=False),
    Column("/min", 0, lambda task: f"{task.a_minute:,.1f}"),
    Column("stage", 0, _stage, right=False),
    Column("day", 60, lambda task: f"{task.exchanges:,}"),
    Column("by candidate", 70, lambda task: f"{task.by_candidate / task.exchanges:.0%}" if task.exchanges else "-"),
    Column("spent", 80, _spent),
    Column("median", 100, lambda task: _ms(task.median_ms)),
    Column("95 %", 90, lambda task: _ms(task.slow_ms)),
    Column("fell back", 110, lambda task: f"{task.fallbacks:,}"),
    Column("failed", 50, lambda task: f"{task.failed:,}"),
    Column("candidate", 140, lambda task: printable(task.candidate, 30) or "-", right=False),
)


def name_of(task: str | None) -> str:
    """A task's name in one line."""
    return _NO_NAME if task is None else printable(task, _NAME_MOST)


def columns(width: int) -> list[Column]:
    """Those that a terminal of this width has room for."""
    return [column for column in COLUMNS if column.width <= width]


def chosen(tasks: Sequence[TaskNow], view: View) -> list[TaskNow]:
    """The tasks of a view, in its order; equal ones by name."""
    wanted = [task for task in tasks if view.part.lower() in (task.task or _NO_NAME).lower()]
    named = sorted(wanted, key=lambda task: task.task or "")
    return sorted(named, key=SORTS[view.sort], reverse=not view.backwards)


def head(frame: Frame, paused: bool = False) -> str:
    """Where and when."""
    state = "controller runs" if frame.running else "no controller"
    return f"Stillroom  {frame.at:%H:%M:%S} UTC  {state}  {frame.home}" + ("  PAUSED" if paused else "")


def figures(frame: Frame, width: int) -> list[str]:
    """The state of everything but tasks, as labelled lines of at most this width."""
    labelled = {
        "traffic": _traffic(frame),
        "money": _money(frame),
        "engines": _engines(frame),
        **({"learning": "; ".join(map(_learning, frame.learning))} if frame.learning else {}),
        "capture": _capture(frame),
    }
    wanting = [printable(one) for one in needs(frame)] or ["nothing"]
    more = [f"and {len(wanting) - _MOST_NEEDS} more"] if len(wanting) > _MOST_NEEDS else []
    labelled |= {"needs you" if not row else " " * row: one for row, one in enumerate([*wanting[:_MOST_NEEDS], *more])}
    lines: list[str] = []
    for label, text in labelled.items():
        lines += textwrap.wrap(text, max(width, 30), initial_indent=f"{label:<11}", subsequent_indent=" " * 11)
    return lines


def caption(tasks: Sequence[TaskNow], frame: Frame, view: View) -> str:
    """What is listed below it."""
    shown, all_of = len(tasks), len(frame.logged.tasks)
    part = f", with {printable(view.part)!r} in the name" if view.part else ""
    order = f"by {view.sort}" + (", the least first" if view.backwards else "")
    return f"{shown} of {all_of} tasks of the last day, {order}{part}"


def page(frame: Frame, view: View, width: int) -> str:
    """A whole frame, for who looks once."""
    tasks, shown = chosen(frame.logged.tasks, view), columns(width)
    rows = [[column.title for column in shown], *([column.cell(task) for column in shown] for task in tasks)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(shown))]
    table = [
        "  ".join(
            cell.rjust(wide) if column.right else cell.ljust(wide)
            for cell, wide, column in zip(row, widths, shown, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([head(frame), *figures(frame, width), "", caption(tasks, frame, view), *table])


def detail(found: TaskDetail) -> str:
    """One task's candidates, what is proved of each and what it waits for, and the moves that were made."""
    if not found.candidates:
        return f"{name_of(found.task)}\n\nno candidate yet: stillroom forecast TASK, then stillroom distill TASK"
    parts = [name_of(found.task)]
    for one in found.candidates:
        parts.append(
            f"{printable(one['candidate'])}: {one['stage']} since {one['since']}\n"
            f"  why: {printable(one['reason'])}\n  evidence: {printable(one['verdict'], 400)}"
            + (f"\n  next: {printable(one['next'], 400)}" if one["next"] else "")
        )
    moves = [f"{move.at:%Y-%m-%d %H:%M}  {_moved(move.before, move.after)}  {move.reason}" for move in found.moves]
    return "\n\n".join([*parts, "\n".join(["latest moves", *map(printable, moves)])])


def _moved(before: str, after: str) -> str:
    return f"{before or 'new'} -> {after}"


def _traffic(frame: Frame) -> str:
    if (now := frame.flow) is not None:
        told = f"{now.requests:,.1f} requests a second"
        told += f", {now.failures:,.1f} failing" if now.failures else ""
        told += f"; half within {_ms(now.median_ms)}, 95 % within {_ms(now.slow_ms)}" if now.slow_ms else ""
    else:
        told = f"{sum(task.a_minute for task in frame.logged.tasks):,.1f} exchanges a minute over {MINUTES} minutes"
    return told + (f"; {frame.counted.of('in_progress'):,} under way" if frame.counted else "")


def _money(frame: Frame) -> str:
    money = frame.logged.money
    if money is None:
        return "-"
    missing = f" + {money.unpriced:,} unpriced" if money.unpriced else ""
    return (
        f"this month: teacher {_usd(money.teacher_usd)}{missing}, avoided {_usd(money.avoided_usd)} (estimate), "
        f"net saving {_usd(money.net_usd)}"
    )


def _engines(frame: Frame) -> str:
    if not frame.engines or not frame.running:
        return "none runs"
    return ", ".join(f"{one.name} {one.state} with {_counted(one.ready, 'student')}" for one in frame.engines)


def _learning(course: Course) -> str:
    """How far one distillation is."""
    if not course.points:
        return f"{name_of(course.task)}: begun"
    last = course.points[-1]
    loss = "" if last.loss is None else f", loss {last.loss:.3f}"
    return f"{name_of(course.task)}: {last.what} {last.done:,} of {last.of:,}{loss}, {last.seconds:,.0f} s"


def _capture(frame: Frame) -> str:
    spool = "the spool is empty"
    if frame.spool.since is not None:
        age = max(frame.at.timestamp() - frame.spool.since, 0.0)
        spool = f"{_counted(frame.spool.segments, 'segment')} wait for the log, the oldest {age:,.0f} s"
    disk = f"{frame.free / 1e9:,.1f} GB free"
    if (seen := frame.counted) is None:
        return f"{spool}, {disk}"
    parts = " + ".join(f"{seen.of(name):,} {words}" for name, words in _IDENTITY.items())
    return f"{seen.of('requests'):,} requests = {parts}; {spool}, {disk}"


_IDENTITY: Mapping[str, str] = MappingProxyType(
    {"captured": "captured", "opted_out": "opted out", "dropped": "dropped", "in_progress": "under way"}
)


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
