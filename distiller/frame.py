"""Owns one moment of Stillroom for whoever watches it: traffic, money, stages, engines, capture, seen from outside.

Must not know how it is shown. It reads the log, the controller's state files, the spool's folder and the admin port's
metrics, all only to read; each may be missing, and is then said to be.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import duckdb

from distiller.course import Course, courses
from distiller.running import controlled
from distiller.runs import FAILED, Run, runs
from distiller.scrape import Flow, Scrape, flow, scrape
from distiller.settings import Settings
from distiller.tasks_now import DAY, Retired, TaskDetail, TaskNow, retired_since, task_detail, tasks_now
from proxy.errors import StillroomError
from proxy.log import Log, open_log
from proxy.vitals import Waiting, waiting
from router.freezes import frozen
from router.ledger import report
from router.sunset import in_words, sunsets

T = TypeVar("T")

MOST_RUNS = 100  # of the newest are looked at
MONEY_SECONDS = 30.0  # between two looks at the whole ledger, which may be long


@dataclass(frozen=True, slots=True)
class EngineNow:
    """What the controller last wrote of an engine; `failed` are students that it does not serve, and why."""

    name: str
    state: str
    reason: str
    ready: int
    failed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MoneyNow:
    """The ledger of this month (UTC) in four figures, in US dollars; None is unknown. `unpriced` counts charges."""

    teacher_usd: float | None
    unpriced: int
    avoided_usd: float | None
    net_usd: float | None


@dataclass(frozen=True, slots=True)
class Logged:
    """What the log says; `failed` are jobs whose last run of the last day failed."""

    tasks: Sequence[TaskNow] = ()
    retired: Sequence[Retired] = ()
    frozen: Mapping[str, str] | None = None
    sunsets: Sequence[str] = ()
    failed: Sequence[Run] = ()
    money: MoneyNow | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """All of it at `at`. `no_log` and `no_admin` say why there is none, "" where there is; `flow` needs two looks.

    `learning` are the distillations under way; `free` are bytes where everything is kept.
    """

    at: datetime
    home: str
    running: bool
    logged: Logged
    no_log: str
    engines: Sequence[EngineNow]
    learning: Sequence[Course]
    spool: Waiting
    free: int
    counted: Scrape | None
    no_admin: str
    flow: Flow | None


class Watcher:
    """Looks again and again: holds a connection to the log and its last look. Used by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._log: Log | None = None
        self._before: Scrape | None = None
        self._money: tuple[float, MoneyNow] | None = None

    def look(self, now: datetime) -> Frame:
        """A frame of this moment."""
        settings = self._settings
        logged = self._asked(lambda log: self._logged(log, now))
        counted = scrape(_address(settings), os.environ.get(settings.admin.token_env, ""))
        scraped = counted if isinstance(counted, Scrape) else None
        before, self._before = self._before, scraped
        return Frame(
            at=now,
            home=str(settings.folder),
            running=controlled(settings.folder),
            logged=logged if isinstance(logged, Logged) else Logged(),
            no_log=logged if isinstance(logged, str) else "",
            engines=_engines(settings),
            learning=[course for course in courses(settings.courses) if course.running],
            spool=waiting(settings.spool_folder),
            free=shutil.disk_usage(settings.folder if settings.folder.exists() else "/").free,
            counted=scraped,
            no_admin=counted if isinstance(counted, str) else "",
            flow=flow(before, scraped) if before and scraped else None,
        )

    def detail(self, task: str) -> TaskDetail | str:
        """One task, or why there is nothing to say."""
        return self._asked(lambda log: task_detail(log, task, self._settings.router))

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _logged(self, log: Log, now: datetime) -> Logged:
        return Logged(
            tasks=tasks_now(log, now),
            retired=retired_since(log, now - DAY),
            frozen={task: one.reason for task, one in frozen(log).items()},
            sunsets=[in_words(one, now) for one in sunsets(log, self._settings.teacher.sunsets, now)],
            failed=_failed(log, now - DAY),
            money=self._ledger(log, now),
        )

    def _ledger(self, log: Log, now: datetime) -> MoneyNow:
        """As of at most MONEY_SECONDS ago."""
        if self._money is None or time.monotonic() - self._money[0] > MONEY_SECONDS:
            month = now.astimezone(UTC).date().replace(day=1)
            found = report(log, month, floor=self._settings.router.slice_floor)
            money = MoneyNow(found.teacher_usd, found.unpriced, found.avoided_usd, found.net_usd)
            self._money = time.monotonic(), money
        return self._money[1]

    def _asked(self, read: Callable[[Log], T]) -> T | str:
        """What `read` makes of the log, or a sentence where that cannot be; the log is then opened anew next time."""
        try:
            if self._log is None:
                self._log = open_log(self._settings.log, self._settings.folder, read_only=True)
            return read(self._log)
        except duckdb.CatalogException:
            self.close()
            return "the log is of an older version: `stillroom serve` brings it up to date"
        except (StillroomError, duckdb.Error) as error:
            self.close()
            return str(error).splitlines()[0]


def _address(settings: Settings) -> str:
    """Of the admin port, as seen from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(settings.admin.host, settings.admin.host)
    return f"http://{host}:{settings.admin.port}"


def _failed(log: Log, since: datetime) -> list[Run]:
    """Of each job the last run that has ended, where it failed."""
    last: dict[str, Run] = {}
    for run in runs(log, MOST_RUNS):
        if run.ended is not None and run.ended > since:
            last.setdefault(run.job, run)
    return [run for run in last.values() if run.outcome == FAILED]


def _engines(settings: Settings) -> list[EngineNow]:
    """In the order in which they were started; one whose file is just being replaced is left out."""
    places = (settings.engine_state, *settings.more_engine_states, settings.small_state)
    found = []
    for place in places:
        try:
            said = json.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        name = {"engine": "vLLM", "small": "small students"}.get(place.stem, place.stem.replace("engine-", "vLLM "))
        reason = str(said.get("reason") or "")
        found.append(EngineNow(name, said["state"], reason, len(said["ready"]), said.get("failed", {})))
    return found
