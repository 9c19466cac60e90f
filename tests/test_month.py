"""A month of the schedule on a clock that is set, with real processes that train, and two that are killed.

What runs is what the controller runs; only the clock is another. March 2026 in Berlin: on the 29th, a Sunday, the clock
is set forward. Times below are Berlin's.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from distiller.distillations import Distillations
from distiller.jobs import pause, request_run, resume
from distiller.runs import DISTILL, FAILED, INTERRUPTED, OK, SKIPPED, End, Run, runs
from distiller.schedule import Schedule
from distiller.schedule_settings import ScheduleSettings, TaskScheduleSettings
from distiller.settings import DistillerSettings, Settings
from distiller.wants import wants
from proxy.ids import ulid
from proxy.log import Log, open_log
from router.charges import Charge, append
from router.lifecycle import FELL
from router.registry import LIVE, RETIRED, move
from router.settings import MoneySettings
from tests.clocks import Clock, set_clock
from tests.logs import migrated
from tests.router.conftest import PATH, add_rows, insert, known, now
from tests.servers import ended, eventually

BERLIN = ZoneInfo("Europe/Berlin")
WEEKLY, BUSY, WATCHED = "weekly", "busy", "watched"
A_DAY = {WEEKLY: 2, BUSY: 4, WATCHED: 30}  # exchanges, at noon
OWN = {
    BUSY: TaskScheduleSettings(cron="", new_exchanges=30),
    WATCHED: TaskScheduleSettings(cron="", drift=True, teacher_change=True),
}
# Ends as it is told to: well, killed by the kernel, or not before somebody ends it.
TRAINS = """
import json, os, pathlib, signal, sys, time
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "hangs":
    from proxy.supervisor import end_with_parent
    end_with_parent()
    pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))
    time.sleep(600)
print(json.dumps({"outcome": "ok", "detail": "head, agreement 0.95"}))
"""


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=BERLIN)


def without_clock(home: Path) -> Settings:
    """For tests by the real clock: nothing falls due."""
    settings = settings_of(home, quiet_hours="", retention="")
    return replace(settings, distiller=replace(settings.distiller, schedule=""))


def settings_of(home: Path, **schedule: object) -> Settings:
    given: dict[str, object] = {
        "timezone": "Europe/Berlin", "quiet_hours": "22:00-06:00", "tasks": OWN,
        "compaction": "", "backup": "", "prices": "", "certificates": "", "retention": "37 1 * * 6,0,1",
    }  # fmt: skip
    return Settings(
        home=str(home),
        schedule=ScheduleSettings(**(given | schedule)),  # type: ignore[arg-type]
        distiller=DistillerSettings(schedule="0 3 * * 0", min_exchanges=5),
        money=MoneySettings(training_hour=2.0),
    )


class World:
    """A log with its traffic, and the controller of the moment."""

    def __init__(self, home: Path, clock: Clock) -> None:
        self.log, self.reader = migrated(home), open_log(Settings(home=str(home)).log, home, read_only=True)
        self.settings, self.clock, self.pid = settings_of(home), clock, home / "pid"
        self.snapshot = "gpt-4o-2024-05"
        self.fates: dict[int, str] = {}  # by how many trainings there were before
        self.trainings = 0
        self.schedule: Schedule | None = None

    def start(self) -> list[Run]:
        works = {DISTILL: self.train, "retention": self.chore}
        self.schedule = Schedule(self.log, self.settings, works, self.look, self.clock)
        return self.schedule.start()

    def look(self, moment: datetime) -> Sequence[object]:
        return wants(self.reader, self.settings.schedule, self.settings.distiller, moment)

    async def down(self, kindly: bool = True) -> None:
        """The controller ends: told to, or killed together with what it had begun."""
        assert self.schedule is not None
        if kindly:
            await self.schedule.foreman.stop()
        else:
            os.kill(int(self.pid.read_text()), signal.SIGKILL)
        self.schedule.clockwork.stop()
        await asyncio.sleep(0.05)
        self.schedule = None

    async def pass_to(self, moment: datetime, settle: bool = True) -> None:
        """It is that late; the controller, where there is one, does what it does every second."""
        self.clock.now = moment
        if (moment.hour, moment.minute) == (12, 0):
            self.traffic(moment)
        if self.schedule is not None:
            self.schedule.wake()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await self.schedule.step()
            if settle:
                await self.schedule.foreman.settle()

    def traffic(self, moment: datetime) -> None:
        said = {
            "path": PATH, "model": "gpt-4o", "answered_model": self.snapshot, "served_by": "teacher", "status": 200,
            "partial": False, "ts": moment,
        }  # fmt: skip
        tasks = [task for task, count in A_DAY.items() for _ in range(count)]
        add_rows(self.log, "exchanges", [{"id": ulid(), "task": task, **said} for task in tasks])

    async def days(self, first: int, last: int) -> None:
        """Whole days, by the moments at which anything can begin, and those just before."""
        for day in range(first, last + 1):
            night = {"Sat": 1, "Sun": 2, "Mon": 1}.get(f"{at(day, 12):%a}", 0)
            for when, hour, minute in (1, 1, 37), (2, 3, 0), (2, 5, 59), (1, 6, 0), (2, 6, 10), (0, 12, 0):
                if when <= night:
                    await self.pass_to(at(day, hour, minute))

    async def chore(self, run: Run, gpu: str) -> End:
        return End(OK, "done")

    async def train(self, run: Run, gpu: str) -> End:
        """A real process; what it would have written into the log is written when it has said that it is through."""
        fate = self.fates.get(self.trainings, "well")
        self.trainings += 1
        command = [sys.executable, "-c", TRAINS, fate, str(self.pid)]
        end = await Distillations(lambda run, gpu: command)(run, gpu)
        if end.outcome != OK:
            return end
        student = f"student-{self.trainings}"
        card = {"data_until": self.clock.now.isoformat(), "labels": [], "static": [], "max_tokens": 1}
        known(self.log, student, task=run.task, card=card)
        paid = Charge("training", 0.5, 0.25, "hour", run.task, student, moment=self.clock.now)
        self.log.transaction(lambda connection: append(connection, [paid]))
        return replace(end, student=student)

    def fall(self, student: str) -> None:
        """Evidence takes back a student that answers, at this moment of the month."""
        move(self.log, now(self.log, student), LIVE, "promoted")
        move(self.log, now(self.log, student), RETIRED, f"{FELL}0.81 over the last 60 comparisons: below 0.95")
        self.log.query("UPDATE transitions SET ts = ? WHERE candidate = ?", [self.clock.now, student])

    def told(self, kind: str) -> list[Run]:
        return [run for run in reversed(runs(self.log, 1000)) if run.kind == kind]


def line(run: Run) -> tuple[str, str, str | None, int, str | None, Decimal | None]:
    """When it began (or was queued), of what, why in a word, the how manyeth attempt, its outcome and cost."""
    when = (run.started or run.queued).astimezone(BERLIN)
    return f"{when:%d %H:%M}", run.job, run.cause.split()[0], run.attempt, run.outcome, run.usd


async def test_a_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, at(1, 0))
    world = World(tmp_path, clock)
    assert world.start() == []

    await world.days(1, 3)
    await world.pass_to(at(3, 23), settle=False)  # Quiet, but a person asks.
    request_run(world.log, world.settings, WATCHED, "a first student", clock.now)
    await world.pass_to(at(3, 23, 1))
    watched = world.told(DISTILL)[-1].student
    assert watched is not None
    await world.days(4, 7)
    world.fates[world.trainings] = "killed"  # on the 8th: for want of memory, say
    await world.days(8, 9)
    world.fall(watched)
    await world.days(10, 13)
    await world.days(14, 14)
    await world.down()  # over the night to Sunday
    await world.pass_to(at(15, 3))
    clock.now = at(15, 10)
    assert world.start() == []
    await world.pass_to(at(15, 10))
    pause(world.log, world.settings, BUSY, "audit week", clock.now)
    await world.pass_to(at(15, 12))
    await world.days(16, 19)
    await world.pass_to(at(19, 17))
    resume(world.log, world.settings, BUSY, "the audit is over", clock.now)
    await world.pass_to(at(19, 17, 1))
    world.snapshot = "gpt-4o-2024-08"
    await world.days(20, 21)
    await world.pass_to(at(22, 1, 37))
    await world.pass_to(at(22, 3))
    world.fates[world.trainings] = "hangs"
    await world.pass_to(at(22, 6), settle=False)
    await asyncio.to_thread(eventually, lambda: world.pid.exists() and world.pid.read_text(), 60)
    await world.pass_to(at(22, 6, 30), settle=False)
    await world.down(kindly=False)
    clock.now = at(22, 9)
    lost = world.start()
    await world.pass_to(at(22, 9))
    await world.pass_to(at(22, 12))
    await world.days(23, 31)
    await world.down()

    hand, half, nothing = Decimal("0.5"), Decimal("0.5"), Decimal(0)
    assert [line(run) for run in world.told(DISTILL)] == [
        ("01 03:00", "distill", "cron", 1, SKIPPED, nothing),  # There is nothing yet.
        ("03 23:01", "distill:watched", "hand", 1, OK, hand),
        ("08 06:00", "distill:weekly", "cron", 1, FAILED, nothing),
        ("08 03:00", "distill", "cron", 1, OK, nothing),
        ("08 06:10", "distill:weekly", "cron", 2, OK, half),
        ("08 12:00", "distill:busy", "volume", 1, OK, half),
        ("13 12:00", "distill:watched", "drift", 1, OK, half),
        ("15 10:00", "distill:weekly", "cron", 1, OK, half),  # It was missed.
        ("15 10:00", "distill", "cron", 1, OK, nothing),
        ("19 17:01", "distill:busy", "volume", 1, OK, half),  # It was paused on the 16th.
        ("22 06:00", "distill:weekly", "cron", 1, INTERRUPTED, Decimal(1)),  # Half an hour that came to nothing.
        ("22 03:00", "distill", "cron", 1, OK, nothing),
        ("22 09:00", "distill:weekly", "cron", 2, OK, half),
        ("23 12:00", "distill:watched", "teacher", 1, OK, half),
        ("27 12:00", "distill:busy", "volume", 1, OK, half),
        ("29 06:00", "distill:weekly", "cron", 1, OK, half),
        ("29 03:00", "distill", "cron", 1, OK, nothing),
    ]
    everything = runs(world.log, 1000)
    assert [run.job for run in lost] == ["distill:weekly"]
    assert all(run.reason and run.detail is not None and run.usd is not None for run in everything)
    assert max(Counter((run.job, run.cause, run.attempt) for run in everything).values()) == 1
    spent = world.log.query("SELECT sum(CAST(usd AS DECIMAL(38, 15))) FROM spend WHERE kind = 'training'")
    assert spent == [(sum((run.usd or nothing for run in everything), nothing),)]

    retained = [line(run)[0] for run in world.told("retention")]
    nights = [1, 2, 7, 8, 9, 14, 15, 16, 21, 22, 23, 28, 29, 30]
    assert retained == [f"{day:02} {'10:00' if day == 15 else '06:00'}" for day in nights]
    # Six o'clock on the wall, on both sides of the night that lacks an hour.
    begun = {line(run)[0]: run.started.astimezone(UTC).hour for run in world.told("retention") if run.started}
    assert [begun[f"{day} 06:00"] for day in (28, 29, 30)] == [5, 4, 4]
    world.log.close()
    world.reader.close()


CONTROLLER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from tests.clocks import Clock
from tests.test_month import without_clock
from distiller.distillations import Distillations
from distiller.runs import DISTILL
from distiller.schedule import Schedule
from proxy.log import open_log
home, program = Path(sys.argv[1]), sys.argv[2]
settings = without_clock(home)
log = open_log(settings.log, home)
train = Distillations(lambda run, gpu: [sys.executable, "-c", program, "hangs", str(home / "pid")])

async def main():
    schedule = Schedule(log, settings, {DISTILL: train}, lambda now: [], lambda: datetime.now(UTC))
    schedule.start()
    await schedule.run(asyncio.Event())

asyncio.run(main())
"""


async def test_a_killed_controller_takes_its_training_along_and_the_next_one_goes_on(tmp_path: Path) -> None:
    log, settings = migrated(tmp_path), without_clock(tmp_path)
    (newest,) = insert(log, ["a"], task=WEEKLY)
    request_run(log, settings, WEEKLY, "by hand", datetime.now(UTC))
    controller = await asyncio.create_subprocess_exec(sys.executable, "-c", CONTROLLER, str(tmp_path), TRAINS)
    pid = tmp_path / "pid"
    await asyncio.to_thread(eventually, lambda: pid.exists() and pid.read_text(), 60)
    controller.kill()
    await controller.wait()
    await asyncio.to_thread(eventually, lambda: ended(int(pid.read_text())))
    insert(log, ["b"], task=WEEKLY)
    seen: list[tuple[int, str | None]] = []

    async def train(run: Run, gpu: str) -> End:
        seen.append((run.attempt, run.until))
        return End(OK, "done")

    schedule = Schedule(log, settings, {DISTILL: train}, lambda moment: [], lambda: datetime.now(UTC))
    (lost,) = schedule.start()
    await schedule.step()
    await schedule.foreman.settle()
    schedule.clockwork.stop()
    await asyncio.sleep(0.05)
    assert (lost.attempt, lost.until) == (1, newest)
    assert seen == [(2, newest)]  # It may go on from checkpoints: it learns from the same exchanges.
    assert [run.outcome for run in runs(log)] == [OK, INTERRUPTED]


def sundays(log: Log) -> list[str]:
    return [json.dumps([run.cause, run.outcome]) for run in runs(log) if run.job == DISTILL]


@pytest.mark.parametrize(("missed", "outcome"), [("run", OK), ("skip", SKIPPED)])
async def test_what_was_missed_is_run_once_or_skipped_and_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missed: str, outcome: str
) -> None:
    world = World(tmp_path, set_clock(monkeypatch, at(2, 0)))
    world.settings = settings_of(tmp_path, missed=missed, quiet_hours="")
    world.start()
    await world.pass_to(at(2, 0))
    await world.down()
    for day in range(3, 27):
        await world.pass_to(at(day, 12))
    world.clock.now = at(27, 0)
    world.start()
    await world.pass_to(at(27, 0) + timedelta(seconds=1))
    assert sundays(world.log) == [json.dumps(["cron 2026-03-22 03:00", outcome])]
    clocked = [run for run in world.told(DISTILL) if run.task and run.cause.startswith("cron")]
    assert [(run.task, run.outcome) for run in clocked] == [(WEEKLY, OK)][: missed == "run"]
    await world.down()
    world.log.close()
    world.reader.close()
