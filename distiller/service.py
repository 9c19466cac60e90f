"""Owns the controller process: the router's loop, the engines that serve students, the schedule of distillations.

Composition only. A distillation is a process of its own (`stillroom distill`), one at a time, so that training can
neither stall the loop nor take it down.
"""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from distiller.engines import Engines
from distiller.settings import Settings
from distiller.upkeep import keep_backups, maintain_log, opened
from proxy.admin import create_admin, serve_admin
from proxy.errors import BadInput, StillroomError
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.teachers import Teachers, connect_teachers
from proxy.tokens import estimator
from proxy.translate import close_litellm
from proxy.vitals import Observed, Vitals
from proxy.waiting import pause
from router.controller import Controller, only_one
from router.freezes import frozen
from router.judge_client import connect_judge
from router.ledger import charge
from router.prices import cost, price_map
from router.registry import CANARY, LIVE, RETIRED, SHADOW, STUDENT, Watch
from router.signing import signed

if TYPE_CHECKING:  # An extra: not everybody has it.
    from proxy.tracing import Tracing

_log = logging.getLogger("stillroom.service")

CHECK_SECONDS = 30  # between two looks whether a task has enough new exchanges
ENGINE_SECONDS = 2.0  # between two looks whether the engine should serve other students
CHARGE_SECONDS = 60.0
STAGES = (SHADOW, CANARY, LIVE, RETIRED)
MAINTAIN_SECONDS = 3600  # between two runs of maintenance; small files must not pile up for a day


async def run_controller(
    settings: Settings, config: Path | None, admin_port: socket.socket, stop: asyncio.Event
) -> None:
    """Run everything that is not the request path, until `stop`; `admin_port` listens already."""
    with only_one(settings.folder):
        seen = _Seen()
        app = create_admin(
            settings.admin, settings.metrics, Vitals(settings.folder, settings.spool_folder, lambda: seen.now())
        )
        await asyncio.gather(serve_admin(app, admin_port, stop), _work(settings, config, seen, stop))


class _Seen:
    """What the admin port may know: nothing until the log is open."""

    def __init__(self) -> None:
        self.now: Callable[[], Observed] = Observed


async def _work(settings: Settings, config: Path | None, seen: _Seen, stop: asyncio.Event) -> None:
    """Wait for a log that works, then run all that needs it."""
    log = await opened(settings, stop)
    if log is None:
        return
    spool, prices = settings.spool, price_map(settings.money.prices)
    ingest = Ingest(
        log, settings.spool_folder, spool.keep_days, partial(cost, prices), estimator(), spool.min_free_mb << 20
    )
    service = _Service(log, settings, config)
    judge = connect_judge(settings.judge, partial(cost, prices))
    sign = partial(signed, key_file=settings.certificate_key)
    sunsets = settings.teacher.sunsets
    controller = Controller(log, ingest, settings.router, settings.policy, service.served, sign, judge, sunsets)
    seen.now = lambda: replace(service.seen, ingested=ingest.ingested, last_round=controller.last_round)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(close_litellm)  # the judge's, and the teacher's where it is translated
        teachers: Teachers | None = None
        if settings.teacher.key_env:  # Without a key of our own there is nobody to audit with.
            teachers = connect_teachers(settings.teacher)
            stack.callback(teachers.close)
        scheduler = service.schedule()
        scheduler.start()
        stack.callback(scheduler.shutdown, wait=False)
        work = [controller.run(stop, teachers), service.serve(stop), keep_backups(log, settings, stop)]
        if settings.telemetry.spans:
            work.append(_tracing(log, settings).run(stop))
        await asyncio.gather(*work)
    log.close()


class _Service:
    def __init__(self, log: Log, settings: Settings, config: Path | None) -> None:
        self._log, self._settings, self._config = log, settings, config
        self._engines = Engines(settings)
        self._watch = Watch(log)
        self._distilling = asyncio.Lock()
        self.seen = Observed()  # of log and engine, when last looked at

    def served(self) -> Mapping[str, str]:
        """Candidates that are loaded and checked, and where."""
        return self._engines.served()

    async def serve(self, stop: asyncio.Event) -> None:
        """Start engines with the first students, keep them loaded with the current ones, charge their hours."""
        charged = time.monotonic()
        while not stop.is_set():
            known = self._watch.now()
            idle = not self._engines.started
            self._engines.want([c for c in known if c.kind == STUDENT and c.stage != RETIRED], stop)
            if self._engines.started:
                charged = time.monotonic() if idle else self._charge(charged, force=False)
            self.seen = Observed(
                log_answered=time.time(),
                stages={stage: sum(c.stage == stage for c in known) for stage in STAGES},
                engine=self._engines.state(),
            )
            await pause(stop, ENGINE_SECONDS)
        if self._engines.started:
            await self._engines.ended()
            self._charge(charged, force=True)

    def schedule(self) -> AsyncIOScheduler:
        """The jobs: maintenance, retraining by cron, and when a task has enough new exchanges."""
        scheduler = AsyncIOScheduler()
        scheduler.add_job(self._maintain, "interval", seconds=MAINTAIN_SECONDS, max_instances=1, coalesce=True)
        options = self._settings.distiller
        if options.schedule:
            try:
                trigger = CronTrigger.from_crontab(options.schedule)
            except ValueError as error:
                raise BadInput(f"distiller.schedule {options.schedule!r} is no cron expression: {error}") from None
            scheduler.add_job(self._distill_due, trigger, args=[1], max_instances=1, coalesce=True)
        if options.new_exchanges:
            scheduler.add_job(
                self._distill_due, "interval", seconds=CHECK_SECONDS, args=[options.new_exchanges], max_instances=1
            )
        return scheduler

    async def _maintain(self) -> None:
        """Retention, compaction and what is still to be erased, beside the loop, which must not wait for them."""
        try:
            await asyncio.to_thread(maintain_log, self._settings, datetime.now(UTC))
        except (StillroomError, duckdb.Error, OSError) as error:
            _log.error("maintenance failed, trying again: %s", str(error).splitlines()[0] if str(error) else error)

    async def _distill_due(self, fewest: int) -> None:
        """Distill, one after the other, every task with at least `fewest` exchanges its newest student did not see."""
        async with self._distilling:
            for task in due(self._log, fewest, self._settings.distiller.min_exchanges):
                config = ["--config", str(self._config)] if self._config else []
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "stillroom", "distill", task, *config, "--json",
                    stdout=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
                _log.warning("distillation of %s ended with exit code %s", task, await process.wait())

    def _charge(self, since: float, force: bool) -> float:
        """Charge the hours of the machine that serves, idle or not; returns the moment up to which they are charged."""
        now = time.monotonic()
        if not force and now - since < CHARGE_SECONDS:
            return since
        hours = (now - since) / 3600
        charge(self._log, "serving", hours * self._settings.money.engine_hour, hours, "hour")
        return now


def _tracing(log: Log, settings: Settings) -> "Tracing":
    try:
        from proxy.tracing import Tracing
    except ImportError:
        raise BadInput("telemetry.spans = true needs OpenTelemetry: pip install 'stillroom[otel]'") from None
    named = {name: one.url for name, one in settings.teacher.named.items()}
    return Tracing(log, settings.spans, settings.teacher.url, named)


def due(log: Log, fewest: int, fewest_ever: int) -> list[str]:
    """Tasks with enough new exchanges: since the newest student's data, or ever where there is none; none frozen.

    A student that was trained and is no candidate counts from when its training began.
    """
    rows = log.query(
        """
        WITH newest AS (
          SELECT task, max(until) AS until FROM (
            SELECT task, CAST(card ->> 'data_until' AS TIMESTAMPTZ) AS until FROM candidates WHERE kind = 'student'
            UNION ALL
            SELECT task, ts - to_milliseconds(CAST(3600000 * quantity AS BIGINT)) FROM spend
            WHERE kind = 'training' AND model NOT IN (SELECT id FROM candidates)
          ) GROUP BY task
        )
        SELECT e.task FROM exchanges e LEFT JOIN newest n ON n.task = e.task
        WHERE e.path = '/v1/chat/completions' AND e.task IS NOT NULL AND e.served_by = 'teacher' AND e.status = 200
          AND NOT e.partial
          AND (n.until IS NULL OR e.ts > n.until)
        GROUP BY e.task HAVING count(*) >= CASE WHEN any_value(n.until) IS NULL THEN ? ELSE ? END
        ORDER BY count(*) DESC
        """,
        [max(fewest, fewest_ever), fewest],
    )
    held = frozen(log)
    return [task for (task,) in rows if task not in held]
