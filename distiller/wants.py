"""Owns which tasks want to be distilled, beside the clock: for new exchanges, a drift, or a changed teacher.

Each finding is a wish with its cause, which has one run at most: the same transition, snapshot or line of instructions
never asks twice. A student cannot learn what is not there yet, so what changed is learned once the teacher has answered
AFTER exchanges since. Must not know when or whether a wish is granted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple

from distiller.runs import DISTILL, Wish, job_of
from distiller.schedule_settings import ScheduleSettings, TaskScheduleSettings
from distiller.settings import DistillerSettings
from proxy.log import Log
from router.candidates import UNSURE
from router.drift import drifted
from router.evidence import evidence
from router.freezes import frozen
from router.lifecycle import FELL, REFUTED
from router.registry import CANARY, LIVE, RETIRED, STUDENT, Candidate, candidates
from router.templates import changes

AFTER = 100
WINDOW = 2000  # the latest exchanges of a candidate that say how many it still covers
_TEACHERS = """
path = '/v1/chat/completions' AND task IS NOT NULL AND served_by = 'teacher' AND status = 200 AND NOT partial
"""
# Until when each task's newest student has seen its exchanges. One that was trained and is no candidate counts from
# when its training began.
_NEWEST = """
newest AS (
  SELECT task, max(until) AS until FROM (
    SELECT task, CAST(card ->> 'data_until' AS TIMESTAMPTZ) AS until FROM candidates WHERE kind = 'student'
    UNION ALL
    SELECT task, ts - to_milliseconds(CAST(3600000 * quantity AS BIGINT)) FROM spend
    WHERE kind = 'training' AND model IS NOT NULL AND model NOT IN (SELECT id FROM candidates)
  ) GROUP BY task
)
"""
_FRESH = f"""
WITH {_NEWEST}
SELECT e.task, count(*), any_value(n.until)
FROM (SELECT task, ts FROM exchanges WHERE {_TEACHERS}) e LEFT JOIN newest n ON n.task = e.task
WHERE n.until IS NULL OR e.ts > n.until GROUP BY e.task ORDER BY count(*) DESC, e.task
"""
# Of what no student has learned from since: the last candidate of a task that evidence took back while it answered.
_FALLEN = f"""
WITH {_NEWEST}, fallen AS (
  SELECT task, id, ts, reason FROM transitions
  WHERE stage_to = '{RETIRED}' AND stage_from IN ('{CANARY}', '{LIVE}')
    AND (starts_with(reason, '{FELL}') OR starts_with(reason, '{REFUTED}'))
  QUALIFY row_number() OVER (PARTITION BY task ORDER BY id DESC) = 1
)
SELECT f.task, f.id, f.reason FROM fallen f JOIN newest n ON n.task = f.task AND n.until < f.ts
WHERE (SELECT count(*) FROM exchanges e WHERE {_TEACHERS} AND e.task = f.task AND e.ts > f.ts) >= {AFTER}
"""
# Snapshots that answer now and never answered what the task's newest student learned from, though others did.
_CHANGED = f"""
WITH {_NEWEST}, answered AS (
  SELECT e.*, e.ts > n.until AS since FROM newest n JOIN (
    SELECT task, coalesce(teacher, '') AS teacher, coalesce(model, '') AS model, answered_model, ts FROM exchanges
    WHERE {_TEACHERS} AND answered_model IS NOT NULL
  ) e ON e.task = n.task
), before AS (SELECT DISTINCT task, teacher, model, answered_model FROM answered WHERE NOT since)
SELECT task, answered_model, any_value(model), any_value(teacher), count(*) FROM answered
WHERE since AND (task, teacher, model) IN (SELECT (task, teacher, model) FROM before)
  AND (task, teacher, model, answered_model) NOT IN (SELECT (task, teacher, model, answered_model) FROM before)
GROUP BY task, answered_model HAVING count(*) >= {AFTER} ORDER BY task, answered_model
"""
_COVERED = """
SELECT served_by = $id FROM (
  SELECT id, served_by FROM exchanges WHERE task = $task AND ts >= $since
    AND (served_by = $id OR (served_by = 'teacher' AND fallback = $unsure))
  ORDER BY id DESC LIMIT $latest
) ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A task's exchanges that its newest student never saw, and until when that saw them; None: it has no student."""

    task: str
    count: int
    until: datetime | None

    def enough(self, fewest: int, fewest_ever: int) -> bool:
        """`fewest` are new, or where there is no student yet, `fewest_ever` if those are more."""
        return self.count >= (max(fewest, fewest_ever) if self.until is None else fewest)


def fresh(log: Log) -> list[Fresh]:
    """What there is to learn from, the most first; of no task that is frozen."""
    found = [Fresh(*row) for row in log.query(_FRESH)]
    held = frozen(log) if found else {}
    return [one for one in found if one.task not in held]


class Policy(NamedTuple):
    """By what one task is distilled, beside the clock."""

    new_exchanges: int
    drift: bool
    teacher_change: bool


def policy(task: str, schedule: ScheduleSettings, distiller: DistillerSettings) -> Policy:
    """What is said of the task, else of all."""
    said = schedule.tasks.get(task, TaskScheduleSettings())
    return Policy(
        distiller.new_exchanges if said.new_exchanges is None else said.new_exchanges,
        schedule.drift if said.drift is None else said.drift,
        schedule.teacher_change if said.teacher_change is None else said.teacher_change,
    )


def wants(log: Log, schedule: ScheduleSettings, distiller: DistillerSettings, now: datetime) -> list[Wish]:
    """What the log says is to be distilled, by what each task's policy asks for."""
    of: Callable[[str], Policy] = partial(policy, schedule=schedule, distiller=distiller)
    everything = [Policy(distiller.new_exchanges, schedule.drift, schedule.teacher_change)]
    everything += map(of, schedule.tasks)
    found: list[tuple[str, str, str]] = []
    if any(one.new_exchanges for one in everything):
        found += _volume(log, of, distiller.min_exchanges)
    known = candidates(log) if any(one.drift or one.teacher_change for one in everything) else []
    if any(one.drift for one in everything):
        found += [one for one in _drifts(log, known) if of(one[0]).drift]
    if any(one.teacher_change for one in everything):
        found += [one for one in _teacher_changes(log, known) if of(one[0]).teacher_change]
    held = frozen(log) if found else {}
    return [Wish(job_of(task), DISTILL, cause, reason, now, task) for task, cause, reason in found if task not in held]


def _volume(log: Log, of: Callable[[str], Policy], fewest_ever: int) -> Iterator[tuple[str, str, str]]:
    """Once for each time so many more have come: what was refused or lost is tried again with as many again."""
    for one in fresh(log):
        fewest = of(one.task).new_exchanges
        if fewest and one.enough(fewest, fewest_ever):
            seen = "never" if one.until is None else one.until.isoformat()
            yield one.task, f"volume {one.count // fewest} since {seen}", f"{one.count} new exchanges"


def _drifts(log: Log, known: Sequence[Candidate]) -> Iterator[tuple[str, str, str]]:
    for task, transition, reason in log.query(_FALLEN):
        yield task, f"drift {transition}", f"drift: {reason}"
    answering = [one for one in known if one.kind == STUDENT and one.stage in (CANARY, LIVE)]
    for candidate in answering:
        if said := uncovered(log, candidate):
            yield candidate.task, f"inputs {candidate.id}", said


def uncovered(log: Log, candidate: Candidate) -> str | None:
    """In words, that a candidate is sure of clearly fewer exchanges than in shadow: other inputs come. Or None.

    By the detector that watches verdicts, with the least share of shadow's that its interval allows for the bar.
    """
    bar = evidence(log, candidate).coverage_low
    given = {"id": candidate.id, "task": candidate.task, "since": candidate.since, "unsure": UNSURE, "latest": WINDOW}
    sure = [float(covered) for (covered,) in log.query(_COVERED, given)]
    found = drifted(sure, bar) if len(sure) >= AFTER and 0 < bar < 1 else None
    if found is None or not found.found:
        return None
    return f"inputs drifted: sure of {found.recent:.0%} of the latest {found.since}, and of {bar:.0%} or more in shadow"


def _teacher_changes(log: Log, known: Sequence[Candidate]) -> Iterator[tuple[str, str, str]]:
    for task, snapshot, model, teacher, count in log.query(_CHANGED):
        who = f"teacher {teacher}" if teacher else "teacher"
        yield task, f"teacher {teacher} {snapshot}", f"the {who} changed: {snapshot} gave {count} answers to {model}"
    yield from _new_instructions(log, known)


def _new_instructions(log: Log, known: Sequence[Candidate]) -> Iterator[tuple[str, str, str]]:
    """Each from when it began; where a task is new by its instructions, it is that one that is distilled."""
    for change in changes(log, known):
        if change.exchanges >= AFTER:
            cause = f"instructions {change.candidate} {change.since.isoformat()}"
            yield change.now, cause, f"the instructions changed: {change.exchanges} exchanges have others"
