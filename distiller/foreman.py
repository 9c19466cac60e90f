"""Owns the order of work: what waits is begun when it may be, one run of a job at a time, one training a GPU.

Must not know how anything is done, nor why it was wished for. The queue is the log's, so it outlives the process; what
this process begins it ends. A controller that was killed has ended nothing: the next one finds those runs begun, counts
them as interrupted and queues them again, a bounded number of times.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path

from distiller.pauses import paused
from distiller.quiet import Quiet
from distiller.runs import (
    DISTILL,
    FAILED,
    INTERRUPTED,
    OK,
    STARTED,
    End,
    Run,
    begin,
    finish,
    job_of,
    once_more,
    trained,
    unended,
    waiting,
)
from proxy.log import Latest, Log
from router.freezes import frozen

TICK_SECONDS = 1.0
HEAVY = (DISTILL, "retention")
CHORES = "chores"
"""The lane of all that needs no GPU: one after the other, as each of them writes much."""

Now = Callable[[], datetime]
Work = Callable[[Run, str], Awaitable[End]]
"""Does a run on the GPU that is named, "" where none is; cancelled, it stops and leaves what it can go on from."""
Bill = Callable[[Run, datetime], Decimal | None]
"""What a run has cost up to a moment; it charges what nobody has charged yet. None where that is unpriced."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When what waits may begin: quiet hours, GPUs ("" is one without a name), and how often what failed is tried."""

    quiet: Quiet | None = None
    gpus: tuple[str, ...] = ("",)
    retries: int = 2
    backoff: timedelta = timedelta(minutes=10)


class Foreman:
    """Everything happens on the loop that it is called on; `works` do the runs of each kind."""

    def __init__(self, log: Log, works: Mapping[str, Work], rules: Rules, bill: Bill, alive: Path, now: Now) -> None:
        """`alive` is a file whose time says until when a foreman was at work."""
        self._log, self._works, self._rules, self._bill = log, works, rules, bill
        self._alive, self._now = alive, now
        self._open = Latest(log, partial(_look, log))
        self._doing: dict[str, tuple[Run, asyncio.Task[End]]] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is being done."""
        return bool(self._doing)

    def recover(self) -> list[Run]:
        """Before the first tick: end what was begun by who is no more, and queue it again; returns those runs."""
        lost = [run for run in unended(self._log) if run.state == STARTED]
        for run in lost:
            now = max(self._last_seen(), run.started or run.queued)
            why, again = "its controller was ended while it ran", None
            if student := trained(self._log, run):
                end = End(OK, f"{why}, and had just finished", self._bill(run, now), student)
            elif run.attempt > self._rules.retries:
                end = End(INTERRUPTED, f"{why}: given up after attempt {run.attempt}", self._bill(run, now))
            else:
                end = End(INTERRUPTED, f"{why}; it goes on", self._bill(run, now))
                again = once_more(run, run.reason, self._now(), run.attempt + 1)
            finish(self._log, run, end, now, again)
        return lost

    def raise_faults(self) -> None:
        """Raise what a work has raised instead of saying how it ended: that is for who started us to see."""
        for _, task in self._doing.values():
            if task.done() and not task.cancelled() and (fault := task.exception()):
                raise fault

    def tick(self) -> None:
        """End what is done, begin what may begin."""
        now = self._now()
        self._seen(now)
        for lane, (run, task) in list(self._doing.items()):
            if task.done():
                self._ended(run, task.result(), now)
                del self._doing[lane]  # Only now: where the log does not answer, it is ended with a later tick.
        open_runs, held = self._open.now()
        for run in sorted(open_runs, key=lambda one: not one.by_hand):
            free = self._free_lane(run)
            if free is not None and self._may(run, now) and (run.by_hand or held.isdisjoint((run.job, run.kind))):
                self._begin(run, free, now)

    async def settle(self) -> None:
        """Wait until what is being done is done, and nothing more may begin now."""
        self.tick()
        while self._doing:
            await asyncio.wait([task for _, task in self._doing.values()])
            self.tick()

    async def stop(self) -> None:
        """Stop what is being done. That was no fault of it, so it does not count as an attempt."""
        doing, self._doing = self._doing, {}
        for _, task in doing.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in doing.values()), return_exceptions=True)
        for run, task in doing.values():
            now = self._now()
            if task.cancelled():
                end = End(INTERRUPTED, "the controller was stopped; it goes on with the next one", self._bill(run, now))
                finish(self._log, run, end, now, once_more(run, run.reason, now, run.attempt))
            elif task.exception() is None:  # Else the next controller finds it begun.
                self._ended(run, task.result(), now)

    def _may(self, run: Run, now: datetime) -> bool:
        if run.due > now or any(other.job == run.job for other, _ in self._doing.values()):
            return False
        quiet = self._rules.quiet is not None and self._rules.quiet.holds(now)
        return run.by_hand or run.kind not in HEAVY or not quiet

    def _free_lane(self, run: Run) -> str | None:
        lanes = [f"gpu {gpu}" for gpu in self._rules.gpus] if run.kind == DISTILL else [CHORES]
        return next((lane for lane in lanes if lane not in self._doing), None)

    def _begin(self, run: Run, lane: str, now: datetime) -> None:
        until = _until(self._log, run)
        if begin(self._log, run, until, now):
            run = replace(run, state=STARTED, started=now, until=until)
            gpu = "" if lane == CHORES else lane.removeprefix("gpu ")
            self._doing[lane] = run, asyncio.ensure_future(self._works[run.kind](run, gpu))

    def _ended(self, run: Run, end: End, now: datetime) -> None:
        """What failed is tried again later, twice as late each time; a person sees it and decides."""
        end = End(end.outcome, end.detail, self._bill(run, now), end.student)
        again = None
        if end.outcome == FAILED and run.attempt <= self._rules.retries and not run.by_hand:
            due = now + self._rules.backoff * 2 ** (run.attempt - 1)
            again = once_more(run, run.reason, due, run.attempt + 1)
        elif end.outcome == INTERRUPTED:  # Whoever stops the controller may stop what it does with it, and first.
            again = once_more(run, run.reason, now, run.attempt)
        finish(self._log, run, end, now, again)

    def _seen(self, now: datetime) -> None:
        self._alive.parent.mkdir(parents=True, exist_ok=True)
        self._alive.touch()
        os.utime(self._alive, (now.timestamp(), now.timestamp()))

    def _last_seen(self) -> datetime:
        try:
            return datetime.fromtimestamp(self._alive.stat().st_mtime, UTC)
        except FileNotFoundError:
            return datetime.fromtimestamp(0, UTC)


def _look(log: Log) -> tuple[list[Run], frozenset[str]]:
    """What waits, and the jobs that are paused, or whose task is frozen."""
    return waiting(log), frozenset((*paused(log), *map(job_of, frozen(log))))


def _until(log: Log, run: Run) -> str | None:
    """The newest exchange that a distillation may learn from: as before where it goes on."""
    if run.kind != DISTILL or run.until is not None:
        return run.until
    ((newest,),) = log.query("SELECT max(id) FROM exchanges WHERE task = ?", [run.task])
    return None if newest is None else str(newest)
