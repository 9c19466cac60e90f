"""Owns when jobs are due: APScheduler, whose jobs outlive the process in a file. Must not know what they do.

Of a job the file holds its name, its cron expression and when it is due next, so what fell due while no process ran is
told of when one does: once, however often. Nothing that is stored is ever called. Still the file is pickled Python, and
who could write to it could have us run code, so it is ours alone. It can be lost: settings and the log make it again.
"""

import logging
import os
import stat
from collections.abc import Mapping
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

from apscheduler.executors.base import BaseExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError

from distiller.cron import Timer, trigger
from proxy.errors import Refused

_log = logging.getLogger("stillroom.clockwork")


class Fire(NamedTuple):
    """A job that is due, and since when, in the time zone of the schedule."""

    job: str
    due: datetime


class Clockwork:
    """On the loop that it is started on; what falls due is collected until somebody asks."""

    def __init__(self, file: Path, zone: tzinfo) -> None:
        """Nothing is read or made before `start`."""
        self._file, self._zone = file, zone
        self._scheduler: Any = None
        self._fired: list[Fire] = []

    def start(self, timers: Mapping[str, Timer], last: Mapping[str, datetime]) -> None:
        """Keep exactly these jobs from now on. `last` says of each for when it was told of last, where it ever was.

        A job whose expression is as it was goes on from there, so that nothing is lost between a moment being told of
        and somebody having noted it. BadInput for an expression that is none, Refused where others can write the file.
        """
        made = {name: trigger(one.cron, self._zone, one.place) for name, one in timers.items()}
        kept = _ours(self._file)
        try:
            self._open()
        except DatabaseError as error:
            _log.error("%s is damaged and made anew: %s", self._file, str(error).splitlines()[0])
            self._file.unlink()
            kept = _ours(self._file)
            self._open()
        for job in self._scheduler.get_jobs():
            if job.id not in timers:
                job.remove()
        for name, when in made.items():
            self._keep(name, timers[name].cron, when, last.get(name), known=not kept)
        self._scheduler.resume()

    def fired(self) -> list[Fire]:
        """What fell due since this was last asked."""
        told, self._fired = self._fired, []
        return told

    def stop(self) -> None:
        """Let go of the file; the loop must run on for a moment."""
        self._scheduler.shutdown(wait=False)

    def wake(self) -> None:
        """Look at the clock now, where it may have been set."""
        self._scheduler.wakeup()

    def _open(self) -> None:
        store = SQLAlchemyJobStore(engine=create_engine(f"sqlite:///{self._file}"))
        executor = _Telling(self._fired_at)
        self._scheduler = AsyncIOScheduler(
            jobstores={"default": store}, executors={"default": executor}, timezone=self._zone
        )
        try:
            self._scheduler.start(paused=True)
        except DatabaseError:
            store.engine.dispose()
            raise

    def _fired_at(self, job: str, due: datetime) -> None:
        self._fired.append(Fire(job, due.astimezone(self._zone)))

    def _keep(self, name: str, cron: str, when: Any, last: datetime | None, known: bool) -> None:
        wanted = (name, cron, str(self._zone))
        job = self._scheduler.get_job(name)
        same = job is not None and tuple(job.args) == wanted
        if not same:
            self._scheduler.add_job(
                named, when, args=wanted, id=name, replace_existing=True,
                coalesce=True, misfire_grace_time=None, max_instances=1,
            )  # fmt: skip
        if last is None or not (same or known):
            return
        told = when.get_next_fire_time(last.astimezone(self._zone), datetime.now(self._zone))
        if told < self._scheduler.get_job(name).next_run_time:
            self._scheduler.modify_job(name, next_run_time=told)


class _Telling(BaseExecutor):  # type: ignore[misc]  # APScheduler is untyped
    """Tells who is due, and since when: APScheduler's own executors would call what is stored, and not say when."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell = tell

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        self._tell(job.id, run_times[-1])
        self._run_job_success(job.id, [])


def named(job: str, cron: str, zone: str) -> tuple[str, str, str]:
    """What the file says of a job: APScheduler stores a function and its arguments, and nobody calls this one."""
    return job, cron, zone


def _ours(file: Path) -> bool:
    """Make the file where there is none, for us alone; whether it was there. Refused where others can write it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        found = file.lstat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or not stat.S_ISREG(found.st_mode):
            raise Refused(
                f"{file} can be written by others, and is run as Python: delete it, it is made again"
            ) from None
        file.chmod(0o600)
        return True
    return False
