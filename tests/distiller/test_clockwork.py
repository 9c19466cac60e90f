import asyncio
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from distiller.clockwork import Clockwork, Fire
from distiller.cron import Timer
from proxy.errors import BadInput, Refused
from tests.clocks import Clock, set_clock

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 3, 2, 12, tzinfo=UTC)
NIGHTLY = {"retention": Timer("0 3 * * *", "schedule.retention")}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch, START)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "schedule.sqlite"


async def run(file: Path, clock: Clock, until: list[datetime], timers=NIGHTLY, last=()) -> list[Fire]:  # type: ignore[no-untyped-def]
    """Start, set the clock to each of these moments, stop, and return what fell due."""
    works = Clockwork(file, BERLIN)
    works.start(timers, dict(last))
    fires = []
    for moment in [clock.now, *until]:
        clock.now = moment
        works.wake()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        fires += works.fired()
    works.stop()
    await asyncio.sleep(0)
    return fires


def local(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=BERLIN)


async def test_a_job_is_due_when_its_time_has_come(file: Path, clock: Clock) -> None:
    moments = [START + timedelta(hours=hours) for hours in range(60)]
    assert await run(file, clock, moments) == [Fire("retention", local(3, 3)), Fire("retention", local(4, 3))]


async def test_what_fell_due_while_nobody_ran_is_told_once_and_for_its_latest_time(file: Path, clock: Clock) -> None:
    assert await run(file, clock, []) == []
    clock.now = local(9, 12)
    assert await run(file, clock, []) == [Fire("retention", local(9, 3))]
    assert await run(file, clock, []) == []


async def test_what_was_told_and_never_noted_is_told_again(file: Path, clock: Clock) -> None:
    assert await run(file, clock, [local(3, 4)]) == [Fire("retention", local(3, 3))]
    noted = {"retention": local(2, 3)}
    assert await run(file, clock, [], last=noted) == [Fire("retention", local(3, 3))]
    assert await run(file, clock, [], last={"retention": local(3, 3)}) == []


async def test_a_changed_expression_goes_by_its_own_times_from_now_on(file: Path, clock: Clock) -> None:
    await run(file, clock, [])
    clock.now = local(5, 12, 30)
    hourly = {"retention": Timer("0 * * * *", "schedule.retention")}
    last = {"retention": local(2, 3)}
    assert await run(file, clock, [local(5, 13)], hourly, last) == [Fire("retention", local(5, 13))]
    assert await run(file, clock, [local(5, 20)], {}) == []
    assert await run(file, clock, [local(5, 21)]) == []


async def test_a_lost_or_damaged_file_costs_nothing(file: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    await run(file, clock, [])
    clock.now = local(5, 12)
    file.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    last = {"retention": local(2, 3)}
    assert await run(file, clock, [], last=last) == [Fire("retention", local(5, 3))]
    assert "is damaged and made anew" in caplog.text
    file.unlink()
    assert await run(file, clock, [], last=last) == [Fire("retention", local(5, 3))]


async def test_the_file_is_for_us_alone(file: Path, clock: Clock) -> None:
    await run(file, clock, [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o666)
    with pytest.raises(Refused, match="can be written by others"):
        await run(file, clock, [])


async def test_an_expression_that_is_none_is_refused_by_its_setting(file: Path, clock: Clock) -> None:
    with pytest.raises(BadInput, match=r"schedule\.backup 'often' is no cron expression"):
        await run(file, clock, [], {"backup": Timer("often", "schedule.backup")})
    assert not file.exists()


async def test_the_time_that_is_there_twice_has_one_name(file: Path, clock: Clock) -> None:
    clock.now = datetime(2026, 10, 24, 12, tzinfo=UTC)
    moments = [clock.now + timedelta(minutes=10 * number) for number in range(1, 200)]
    fires = await run(file, clock, moments, {"backup": Timer("30 2 * * *", "schedule.backup")})
    assert {f"{fire.due:%d %H:%M}" for fire in fires} == {"25 02:30"}
