"""Owns which jobs there are: chores, and a distillation for each task; when each comes next, and what people may do.

A person's wish goes through the log, from the command line as from a page: a run that is asked for is a row in the
queue, a pause a row of its own, and the controller, which alone runs anything, sees both within seconds.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from distiller import pauses
from distiller.cron import Timer, trigger, zone_of
from distiller.pauses import Pause
from distiller.runs import DISTILL, Run, Wish, job_of, latest, queue, waiting
from distiller.settings import Settings
from distiller.wants import Policy, fresh, policy
from proxy.errors import BadInput, Refused
from proxy.ids import ulid
from proxy.log import Log, catalog_file

CHORES = ("compaction", "retention", "backup", "prices", "certificates")
"""Each is a job and a kind of its own, with a cron expression of its name in `[schedule]`."""
_KNOWN = """
SELECT task FROM candidates WHERE kind = 'student' UNION SELECT task FROM run_events WHERE task IS NOT NULL
UNION SELECT job[9:] FROM pauses WHERE starts_with(job, 'distill:')
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as people see it: `when` in words, `next` by its cron expression, None where only other things ask."""

    name: str
    kind: str
    task: str | None
    when: str
    next: datetime | None
    paused: Pause | None
    last: Run | None


def timers(settings: Settings) -> dict[str, Timer]:
    """Which jobs go by the clock: chores, distilling whatever has something new, and tasks with a time of their own."""
    schedule = settings.schedule
    found = {name: Timer(getattr(schedule, name), f"schedule.{name}") for name in CHORES}
    if catalog_file(settings.log, settings.folder) is None:
        del found["backup"]  # A PostgreSQL catalog is backed up by who runs it.
    found[DISTILL] = Timer(settings.distiller.schedule, "distiller.schedule")
    for task, said in schedule.tasks.items():
        found[job_of(task)] = Timer(said.cron or "", f"schedule.tasks.{task}.cron")
    return {name: timer for name, timer in found.items() if timer.cron}


def check_timers(settings: Settings) -> None:
    """BadInput for a cron expression that is none: at the start, and not when its time would have come."""
    for timer in timers(settings).values():
        trigger(timer.cron, zone_of(settings.schedule.timezone), timer.place)


def by_the_shared_time(settings: Settings, task: str) -> bool:
    """Whether a task goes by `distiller.schedule`: where nothing else is said of it."""
    said = settings.schedule.tasks.get(task)
    return said is None or said.cron is None


def jobs(log: Log, settings: Settings, now: datetime) -> list[Job]:
    """The chores, the shared distillation, and that of each task which has a student, runs, a pause or settings."""
    tasks = {str(task) for (task,) in log.query(_KNOWN)} | set(settings.schedule.tasks)
    last = {run.job: run for run in latest(log)}
    held, zone, times = pauses.paused(log), zone_of(settings.schedule.timezone), timers(settings)

    def job(name: str, kind: str, task: str | None) -> Job:
        timer = times.get(name)
        due = trigger(timer.cron, zone, timer.place).get_next_fire_time(None, now) if timer else None
        when = _words(timer, None if task is None else policy(task, settings.schedule, settings.distiller))
        return Job(name, kind, task, when, due, held.get(name), last.get(name))

    shared = [job(name, name, None) for name in (*CHORES, DISTILL)]
    return shared + [job(job_of(task), DISTILL, task) for task in sorted(tasks)]


def request_run(log: Log, settings: Settings, name: str, reason: str, now: datetime) -> list[Run]:
    """Have a job run as soon as its place is free, whatever the hour or a pause; BadInput where there is none such.

    `name` is a job's or a task's; "distill" is every task with something new, Refused where none has. Returns the runs
    that wait now, of which some may have been asked for already.
    """
    wish: Callable[..., Wish] = partial(Wish, cause=f"hand {ulid()}", reason=reason, due=now, by_hand=True)
    if name == DISTILL:
        found = [one.task for one in fresh(log) if one.enough(1, settings.distiller.min_exchanges)]
        wishes = [wish(job_of(task), DISTILL, task=task) for task in found]
        if not wishes:
            raise Refused(
                "no task has enough new exchanges: `stillroom tasks` lists them; name one to distill it again"
            )
    else:
        job, task = named(log, settings, name)
        wishes = [wish(job, DISTILL if task else job, task=task)]
    for one in wishes:
        queue(log, one, now)
    asked = {one.job for one in wishes}
    return [run for run in waiting(log) if run.job in asked and run.by_hand]


def pause(log: Log, settings: Settings, name: str, reason: str, now: datetime) -> str:
    """Have a job begin nothing by itself; returns its name. BadInput where there is none such."""
    job = DISTILL if name == DISTILL else named(log, settings, name)[0]
    pauses.put(log, job, reason, now)
    return job


def resume(log: Log, settings: Settings, name: str, reason: str, now: datetime) -> str:
    """End a pause; returns the job's name. BadInput where there is no such job, or it is not paused."""
    job = DISTILL if name == DISTILL else named(log, settings, name)[0]
    pauses.lift(log, job, reason, now)
    return job


def named(log: Log, settings: Settings, name: str) -> tuple[str, str | None]:
    """The job of this name or of this task, and its task if it has one; BadInput where there is none."""
    if name in CHORES:
        return name, None
    task = name.removeprefix(f"{DISTILL}:")
    known = "SELECT 1 FROM exchanges WHERE task = $task UNION ALL SELECT 1 FROM candidates WHERE task = $task LIMIT 1"
    if task in settings.schedule.tasks or log.query(known, {"task": task}):
        return job_of(task), task
    near = difflib.get_close_matches(name, (*CHORES, DISTILL), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "take one from `stillroom schedule list` or `stillroom tasks`"
    raise BadInput(f"there is no job or task {name!r}: {hint}")


def _words(timer: Timer | None, by: Policy | None) -> str:
    """When a job runs, for people."""
    found = [timer.cron] if timer else []
    if by is not None:
        found += [f"{by.new_exchanges} new exchanges"] if by.new_exchanges else []
        found += ["drift"] if by.drift else []
        found += ["a changed teacher"] if by.teacher_change else []
    return "; ".join(found)
