"""Owns what keeps a task's candidates from moving up by themselves: a freeze, a cool-down, `promote = "manual"`.

Demotions never ask here: whatever holds a task, what got worse goes. Freezes are append-only, the last one counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log
from router.registry import CANARY, LIVE, RETIRED, SHADOW, SUPERSEDED, Candidate
from router.settings import RouterSettings, TaskSettings


@dataclass(frozen=True, slots=True)
class Freeze:
    """Since when a task is frozen, and why."""

    since: datetime
    reason: str


def frozen(log: Log) -> Mapping[str, Freeze]:
    """The tasks that are frozen now."""
    rows = log.query(
        "SELECT task, ts, reason FROM (SELECT * FROM freezes QUALIFY row_number() OVER "
        "(PARTITION BY task ORDER BY id DESC) = 1) WHERE frozen"
    )
    return {task: Freeze(since, reason) for task, since, reason in rows}


def freeze(log: Log, task: str, reason: str) -> None:
    """Nothing of this task is promoted or distilled by itself until it is thawed; BadInput for an unknown task."""
    known = "SELECT 1 FROM exchanges WHERE task = $task UNION ALL SELECT 1 FROM candidates WHERE task = $task LIMIT 1"
    if not log.query(known, {"task": task}):
        raise BadInput(f"there is no task {task!r}: take a name from `stillroom tasks`")
    _append(log, task, True, reason)


def thaw(log: Log, task: str, reason: str) -> None:
    """End a freeze; BadInput where there is none."""
    if task not in frozen(log):
        raise BadInput(f"task {task!r} is not frozen")
    _append(log, task, False, reason)


def _append(log: Log, task: str, is_frozen: bool, reason: str) -> None:
    values = [ulid(), task, is_frozen, reason]
    log.transaction(lambda c: c.execute("INSERT INTO freezes VALUES (?, now(), ?, ?, ?)", values))


def cooling(log: Log, task: str, hours: float) -> datetime | None:
    """Until when the task cools down after a candidate that answered it was taken back, or None."""
    ((last,),) = log.query(
        f"SELECT max(ts) FROM transitions WHERE task = ? AND stage_from IN ('{CANARY}', '{LIVE}') "
        f"AND stage_to = '{RETIRED}' AND NOT starts_with(reason, ?)",
        [task, SUPERSEDED],
    )
    until = last + timedelta(hours=hours) if last else None
    return until if until and until > datetime.now(UTC) else None


def held(log: Log, candidate: Candidate, settings: RouterSettings) -> str | None:
    """Why the candidate does not move up by itself, in words, or None.

    A cool-down holds only who answers nobody yet: what an operator promoted meanwhile goes on.
    """
    task = candidate.task
    if found := frozen(log).get(task):
        thaws = f"`stillroom freeze {task} --off --reason ...` thaws it"
        return f"frozen since {found.since:%Y-%m-%d %H:%M}: {found.reason}; {thaws}"
    if candidate.stage != LIVE and settings.tasks.get(task, TaskSettings()).promote == "manual":
        return f"waits for `stillroom promote {task}`"
    if candidate.stage == SHADOW and (until := cooling(log, task, settings.cooldown_hours)):
        return f"cools down until {until:%Y-%m-%d %H:%M %Z}, or `stillroom promote {task}`"
    return None
