import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from distiller.pauses import lift, put
from distiller.runs import DISTILL, OK, SKIPPED, End, Run, Wish, job_of, queue, runs
from distiller.schedule import Schedule
from distiller.schedule_settings import ScheduleSettings, TaskScheduleSettings
from distiller.settings import DistillerSettings, Settings
from proxy.log import Log
from tests.clocks import Clock, set_clock
from tests.logs import migrated
from tests.router.conftest import insert

SUNDAY = datetime(2026, 3, 1, 2, tzinfo=UTC)
OWN = {"own": TaskScheduleSettings(cron="0 4 * * 0"), "never": TaskScheduleSettings(cron="")}


def settings_of(home: Path) -> Settings:
    schedule = ScheduleSettings(
        timezone="UTC", compaction="", backup="", prices="", certificates="", retention="30 3 * * *", tasks=OWN
    )
    distiller = DistillerSettings(schedule="0 3 * * 0", min_exchanges=5)
    return Settings(home=str(home), schedule=schedule, distiller=distiller)


class World:
    def __init__(self, home: Path, clock: Clock) -> None:
        self.log, self.clock, self.wishes, self.looks = migrated(home), clock, list[Wish](), 0
        self.schedule = Schedule(
            self.log, settings_of(home), {DISTILL: self.do, "retention": self.do}, self.look, clock
        )
        self.schedule.start()

    async def do(self, run: Run, gpu: str) -> End:
        return End(OK, "done")

    def look(self, now: datetime) -> list[Wish]:
        self.looks += 1
        return self.wishes

    async def pass_to(self, moment: datetime) -> None:
        self.clock.now = moment
        self.schedule.wake()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await self.schedule.step()
        await self.schedule.foreman.settle()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path, set_clock(monkeypatch, SUNDAY))
    yield world
    await world.schedule.foreman.stop()
    world.schedule.clockwork.stop()
    await asyncio.sleep(0)
    world.log.close()


def rows(log: Log) -> list[tuple[str, str | None, str | None]]:
    return [(run.job, run.outcome, run.detail) for run in reversed(runs(log))]


async def test_the_shared_time_is_for_tasks_of_which_nothing_else_is_said(world: World) -> None:
    for task in ("a", "b", "own", "never"):
        insert(world.log, ["a"] * 5, task=task)
    insert(world.log, ["a"] * 4, task="few")
    await world.pass_to(SUNDAY.replace(hour=3))
    assert sorted(rows(world.log)) == [
        ("distill", OK, "queued: a, b"), ("distill:a", OK, "done"), ("distill:b", OK, "done"),
    ]  # fmt: skip
    assert {run.reason for run in runs(world.log) if run.task} == {"cron 0 3 * * 0: 5 new exchanges"}
    await world.pass_to(SUNDAY.replace(hour=4))
    assert rows(world.log)[-1] == ("distill:own", OK, "done")


async def test_a_time_to_which_nothing_came_leaves_a_row_too(world: World) -> None:
    await world.pass_to(SUNDAY.replace(hour=4))
    assert sorted(rows(world.log)) == [
        ("distill", SKIPPED, "nothing new to learn from"),
        ("distill:own", SKIPPED, "nothing new to learn from"),
        ("retention", OK, "done"),
    ]


async def test_what_is_paused_leaves_a_row_and_is_not_caught_up_with(world: World) -> None:
    insert(world.log, ["a"] * 5, task="a")
    put(world.log, DISTILL, "no GPU", SUNDAY)
    put(world.log, "retention", "a migration", SUNDAY)
    world.wishes = [Wish(job_of("a"), DISTILL, "volume 1", "5 new exchanges", SUNDAY, "a")]
    await world.pass_to(SUNDAY.replace(hour=3, minute=30))
    assert sorted(rows(world.log)) == [
        ("distill", SKIPPED, "paused: no GPU"), ("retention", SKIPPED, "paused: a migration"),
    ]  # fmt: skip
    lift(world.log, DISTILL, "it is back", SUNDAY)
    await world.pass_to(SUNDAY.replace(hour=3, minute=31))
    assert rows(world.log)[2:] == [("distill:a", OK, "done")]  # What is wanted still is.


async def test_what_waits_already_is_not_queued_again(world: World) -> None:
    put(world.log, "x", "nothing", SUNDAY)
    world.schedule.foreman.tick()
    later = SUNDAY + timedelta(days=9)
    queue(world.log, Wish("retention", "retention", "earlier", "so", later), SUNDAY)
    await world.pass_to(SUNDAY.replace(hour=3, minute=30))
    assert ("retention", SKIPPED, "an earlier run of it waits still") in rows(world.log)


async def test_the_log_is_looked_at_again_when_it_has_changed(world: World) -> None:
    await world.pass_to(SUNDAY)
    assert world.looks == 1
    await world.pass_to(SUNDAY + timedelta(seconds=10))
    await world.pass_to(SUNDAY + timedelta(seconds=31))
    assert world.looks == 1
    insert(world.log, ["a"])
    await world.pass_to(SUNDAY + timedelta(seconds=62))
    assert world.looks == 2


async def test_a_log_that_does_not_answer_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    insert(world.log, ["a"] * 5, task="a")
    query: Callable[..., object] = world.log.query

    def broken(*_: object) -> None:
        raise duckdb.IOException("the disk is gone")

    monkeypatch.setattr(world.log, "query", broken)
    world.clock.now = SUNDAY.replace(hour=3)
    world.schedule.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stop = asyncio.Event()
    running = asyncio.create_task(world.schedule.run(stop))
    while "the schedule waits for the log: the disk is gone" not in caplog.text:
        await asyncio.sleep(0.02)
    monkeypatch.setattr(world.log, "query", query)
    async with asyncio.timeout(30):
        while ("distill:a", OK, "done") not in rows(world.log):  # The moment was not lost.
            await asyncio.sleep(0.1)
    stop.set()
    await running
    world.schedule.start()
