"""Owns the controller process: the router's loop, the engines that serve students, the schedule, who is told of it.

Composition only: each of them is a module of its own.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distiller.channels import channels
from distiller.chores import wanted_backup, works
from distiller.dashboard.app import create_dashboard
from distiller.dashboard.reading import Readers
from distiller.distillations import Distillations, trainer
from distiller.engine_hours import EngineHours
from distiller.engines import Engines
from distiller.jobs import check_timers, timers
from distiller.log_metrics import LogMetrics
from distiller.notices import Drops, Outside, by_key, moments, states
from distiller.notifier import Named, Notifier
from distiller.runs import DISTILL, Wish, queue
from distiller.schedule import Schedule
from distiller.settings import Settings
from distiller.upkeep import keep_prices, opened
from distiller.wants import wants
from proxy.admin import admin_tokens, create_admin, serve_admin
from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log, open_log
from proxy.teachers import Teachers, connect_teachers
from proxy.tokens import estimator
from proxy.translate import close_litellm
from proxy.vitals import Observed, Vitals
from proxy.waiting import pause
from router.controller import Controller, only_one
from router.judge_client import connect_judge
from router.price_history import record, recorded, refresh
from router.prices import PriceList
from router.registry import CANARY, LIVE, RETIRED, SHADOW, STUDENT, Watch
from router.signing import signed

if TYPE_CHECKING:  # An extra: not everybody has it.
    from proxy.tracing import Tracing

_log = logging.getLogger("stillroom.service")

ENGINE_SECONDS = 2.0  # between two looks whether the engine should serve other students
STAGES = (SHADOW, CANARY, LIVE, RETIRED)


async def run_controller(
    settings: Settings, config: Path | None, admin_port: socket.socket, stop: asyncio.Event
) -> None:
    """Run everything that is not the request path, until `stop`; `admin_port` listens already."""
    check_timers(settings)
    with only_one(settings.folder), closing(Readers(settings)) as readers:
        seen = _Seen()
        vitals = Vitals(settings.folder, settings.spool_folder, lambda: seen.now())
        pages = create_dashboard(settings, config, admin_tokens(settings.admin), vitals, readers, stop.is_set)
        app = create_admin(settings.admin, settings.metrics, vitals, {"/ui": pages})
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
    spool, prices = settings.spool, PriceList(settings.money, recorded(log))
    record(log, prices, datetime.now(UTC))  # Before anything is charged: an upgrade of the map holds from now on.
    ingest = Ingest(log, settings.spool_folder, spool.keep_days, prices, estimator(), spool.min_free_mb << 20)
    service = _Service(log, settings)
    judge = connect_judge(settings.judge, prices)
    sign = partial(signed, key_file=settings.certificate_key)
    sunsets = settings.teacher.sunsets
    controller = Controller(log, ingest, settings.router, settings.policy, service.served, sign, judge, sunsets)
    told = LogMetrics(settings)
    seen.now = lambda: replace(
        service.seen, ingested=ingest.ingested, last_round=controller.last_round, more=told.metrics()
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(close_litellm)  # the judge's, and the teacher's where it is translated
        teachers: Teachers | None = None
        if settings.teacher.key_env:  # Without a key of our own there is nobody to audit with.
            teachers = connect_teachers(settings.teacher)
            stack.callback(teachers.close)
        work = [controller.run(stop, teachers), service.serve(stop), keep_prices(log, prices, stop)]
        work.append(_schedule(log, stack, settings, config, prices).run(stop))
        work.append(_notifier(log, stack, settings, service).run(stop))
        work.append(told.run(stop))
        if settings.telemetry.spans:
            work.append(_tracing(log, settings).run(stop))
        await asyncio.gather(*work)
    log.close()


class _Service:
    def __init__(self, log: Log, settings: Settings) -> None:
        self._log, self._settings = log, settings
        self._engines = Engines(settings)
        self._hours = EngineHours(log, settings.money, self._engines.urls)
        self._watch = Watch(log)
        self.seen = Observed()  # of log and engine, when last looked at

    def served(self) -> Mapping[str, str]:
        """Candidates that are loaded and checked, and where."""
        return self._engines.served()

    async def serve(self, stop: asyncio.Event) -> None:
        """Start engines with the first students, keep them loaded with the current ones, charge their hours."""
        while not stop.is_set():
            known = self._watch.now()
            self._engines.want([c for c in known if c.kind == STUDENT and c.stage != RETIRED], stop)
            if self._engines.started:
                await self._hours.look()
            self.seen = Observed(
                log_answered=time.time(),
                stages={stage: sum(c.stage == stage for c in known) for stage in STAGES},
                engine=self._engines.state(),
                students_down=sum(
                    c.kind == STUDENT and c.stage in (CANARY, LIVE) and c.id not in self.served() for c in known
                ),
            )
            await pause(stop, ENGINE_SECONDS)
        if self._engines.started:
            await self._engines.ended()
            self._hours.charge()


def _schedule(log: Log, stack: AsyncExitStack, settings: Settings, config: Path | None, prices: PriceList) -> Schedule:
    """Started. What is wanted is looked for on a connection of its own, as that takes long on a large log."""
    reader = open_log(settings.log, settings.folder, read_only=True)
    stack.callback(reader.close)

    def refreshed(now: datetime) -> str:
        new = refresh(log, prices, now)
        return f"new prices: {', '.join(new)}" if new else "no model in use has another price"

    def look(now: datetime) -> list[Wish]:
        backups = wanted_backup(reader, now) if "backup" in timers(settings) else []
        return [*wants(reader, settings.schedule, settings.distiller, now), *backups]

    done_by = works(settings, refreshed)
    done_by[DISTILL] = Distillations(trainer(config))
    schedule = Schedule(log, settings, done_by, look, partial(datetime.now, UTC))
    schedule.start()
    if "backup" in timers(settings):
        now = datetime.now(UTC)
        queue(log, Wish("backup", "backup", f"start {ulid()}", "the controller started", now), now)
    return schedule


def _notifier(log: Log, stack: AsyncExitStack, settings: Settings, service: _Service) -> Notifier:
    """Looks on a connection of its own, beside the loop; BadInput where a secret is missing."""
    ways, drops, wanted = channels(settings.notify), Drops(settings.metrics), settings.notify.events
    reader = open_log(settings.log, settings.folder, read_only=True)
    stack.callback(reader.close)

    def look(now: datetime) -> tuple[Named, Named]:
        outside = Outside(service.seen.engine, drops.now(now), service.seen.students_down or 0)
        return by_key(moments(reader, now), wanted), by_key(states(reader, settings, outside, now), wanted)

    return Notifier(log, ways, look, partial(datetime.now, UTC))


def _tracing(log: Log, settings: Settings) -> "Tracing":
    try:
        from proxy.tracing import Tracing
    except ImportError:
        raise BadInput("telemetry.spans = true needs OpenTelemetry: pip install 'stillroom[otel]'") from None
    named = {name: one.url for name, one in settings.teacher.named.items()}
    return Tracing(log, settings.spans, settings.teacher.url, named)
