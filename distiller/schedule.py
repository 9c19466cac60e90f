"""Owns what the controller does by itself: what falls due by the clock or is wanted becomes a run, and runs are done.

Must not know how anything is done: it is given the works. Every moment of a cron expression leaves a row, also where
nothing came of it, and why.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import duckdb

from distiller.clockwork import Clockwork, Fire
from distiller.cron import wall, zone_of
from distiller.foreman import TICK_SECONDS, Foreman, Now, Rules, Work
from distiller.jobs import by_the_shared_time, timers
from distiller.pauses import Pause, paused
from distiller.quiet import quiet_hours
from distiller.run_costs import bill
from distiller.runs import DISTILL, OK, SKIPPED, End, Run, Wish, job_of, last_due, queue, record
from distiller.settings import Settings
from distiller.wants import fresh
from proxy.errors import StillroomError
from proxy.log import Log
from proxy.waiting import pause

_log = logging.getLogger("stillroom.schedule")

LOOK_SECONDS = 30.0  # between two looks whether anything is wanted
LATE = timedelta(minutes=5)  # A controller that works is never so late, however busy.
CRON = "cron"  # how the cause of a run begins that the clock asked for

Look = Callable[[datetime], Sequence[Wish]]
"""What is wanted at a moment, beside the clock; called in a thread."""


class Schedule:
    """One per log, on the loop that `start` is called on."""

    def __init__(self, log: Log, settings: Settings, works: Mapping[str, Work], look: Look, now: Now) -> None:
        """`works` do the runs of each kind."""
        self._log, self._settings, self._look, self._now = log, settings, look, now
        schedule = settings.schedule
        self._zone = zone_of(schedule.timezone)
        self._timers = timers(settings)
        rules = Rules(
            quiet_hours(schedule.quiet_hours, self._zone), schedule.gpus or ("",), schedule.retries,
            timedelta(minutes=schedule.retry_minutes),
        )  # fmt: skip
        charge = bill(log, settings.money.training_hour)
        self.foreman = Foreman(log, works, rules, charge, settings.at_work, now)
        self.clockwork = Clockwork(settings.schedule_file, self._zone)
        self._fires: list[Fire] = []
        self._looked: tuple[datetime, int] | None = None  # when, and at which snapshot of the log
        self._looking: asyncio.Future[Sequence[Wish]] | None = None

    def start(self) -> list[Run]:
        """Take up what a controller before has left; returns the runs that it had begun."""
        lost = self.foreman.recover()
        for run in lost:
            _log.warning("%s was interrupted when its controller ended: %s", run.job, run.reason)
        self.clockwork.start(self._timers, last_due(self._log, CRON))
        return lost

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. What the log does not take now it takes later; what a work raises ends the controller."""
        try:
            while not stop.is_set():
                self.foreman.raise_faults()
                try:
                    await self.step()
                except (StillroomError, duckdb.Error, OSError) as error:
                    _log.error("the schedule waits for the log: %s", (str(error).splitlines() or [repr(error)])[0])
                await pause(stop, TICK_SECONDS)
        finally:
            self.clockwork.stop()
            await self.foreman.stop()
            if self._looking is not None:
                await asyncio.wait([self._looking])  # Its connection is closed next.

    async def step(self) -> None:
        """Look at the clock, now and then at what is wanted, and begin what may begin."""
        now = self._now()
        self._fires += self.clockwork.fired()
        while self._fires:
            self._note(self._fires[0], now)
            del self._fires[0]
        if self._looked is None or now - self._looked[0] >= timedelta(seconds=LOOK_SECONDS):
            self.clockwork.wake()  # Its own timer does not see that the machine slept, or its clock was set.
            self._begin_to_look(now)
        if self._looking is not None:
            await self._queue_wanted(now)
        self.foreman.tick()

    def _begin_to_look(self, now: datetime) -> None:
        """What is wanted is so by the log alone: where that is as it was, nothing else is."""
        snapshot = self._log.snapshot()
        if self._looking is None and (self._looked is None or snapshot != self._looked[1]):
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._look, now))
        self._looked = now, snapshot

    async def _queue_wanted(self, now: datetime) -> None:
        """What a look has found, once it is done: on a large log it takes long, and runs begin and end meanwhile."""
        assert self._looking is not None
        done, _ = await asyncio.wait([self._looking], timeout=TICK_SECONDS)
        if not done:
            return
        looked, self._looking = self._looking, None
        wishes = looked.result()
        held = paused(self._log) if wishes else {}
        for wish in wishes:
            if _pause(held, wish) is None:
                queue(self._log, wish, now)

    def wake(self) -> None:
        """The clock was set."""
        self.clockwork.wake()

    def _note(self, fire: Fire, now: datetime) -> None:
        """Queue what the clock asks for, or say why not. Again for the same moment, it changes nothing."""
        task = fire.job.removeprefix(f"{DISTILL}:") if fire.job.startswith(f"{DISTILL}:") else None
        kind = DISTILL if task or fire.job == DISTILL else fire.job
        reason = f"{CRON} {self._timers[fire.job].cron}"
        late = now - fire.due > LATE
        if late:
            reason += f", due {wall(fire.due)} when no controller ran"
        wish = Wish(fire.job, kind, f"{CRON} {wall(fire.due)}", reason, fire.due, task)
        held = paused(self._log)
        if found := _pause(held, wish):
            record(self._log, wish, End(SKIPPED, f"paused: {found.reason}"), now)
        elif late and self._settings.schedule.missed == "skip":
            record(self._log, wish, End(SKIPPED, 'it was missed, and schedule.missed is "skip"'), now)
        elif kind == DISTILL:
            self._distillations(wish, held, now)
        elif queue(self._log, wish, now) is None:
            record(self._log, wish, End(SKIPPED, "an earlier run of it waits still"), now)

    def _distillations(self, wish: Wish, held: Mapping[str, Pause], now: datetime) -> None:
        """One task's, where anything is new; or every task's that goes by the shared time, and what came of that."""
        fewest, queued = self._settings.distiller.min_exchanges, []
        for one in fresh(self._log):
            mine = one.task == wish.task if wish.task else by_the_shared_time(self._settings, one.task)
            if not mine or not one.enough(1, fewest):
                continue
            own = replace(wish, job=job_of(one.task), task=one.task, reason=f"{wish.reason}: {one.count} new exchanges")
            if _pause(held, own) is None and queue(self._log, own, now):
                queued.append(one.task)
        if not queued or wish.task is None:
            end = End(OK, f"queued: {', '.join(queued)}") if queued else End(SKIPPED, "nothing new to learn from")
            record(self._log, wish, end, now)


def _pause(held: Mapping[str, Pause], wish: Wish) -> Pause | None:
    """A pause of all distillations is one of each."""
    return held.get(wish.job) or held.get(wish.kind)
