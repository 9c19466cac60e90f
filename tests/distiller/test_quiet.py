from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.quiet import Quiet, quiet_hours, quiet_until
from distiller.schedule_settings import ScheduleSettings

BERLIN = ZoneInfo("Europe/Berlin")


def quiet(text: str, zone: ZoneInfo = BERLIN) -> Quiet:
    found = quiet_hours(text, zone)
    assert found is not None
    return found


def at(day: int, hour: int, minute: int = 0, month: int = 3, fold: int = 0) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=BERLIN, fold=fold)


@pytest.mark.parametrize(("hour", "holds"), [(7, False), (8, True), (12, True), (19, True), (20, False), (23, False)])
def test_they_go_from_one_time_to_the_other(hour: int, holds: bool) -> None:
    found = quiet("08:00-20:00")
    assert found.holds(at(3, hour)) is holds
    assert found.until(at(3, hour)) == (at(3, 20) if holds else None)


def test_they_may_go_over_midnight() -> None:
    found = quiet("22:00-06:00")
    assert found.until(at(3, 23)) == at(4, 6)
    assert found.until(at(4, 5, 59)) == at(4, 6)
    assert found.until(at(4, 6)) is None


def test_none_are_none() -> None:
    assert quiet_hours("", BERLIN) is None
    assert quiet_until(ScheduleSettings(), at(3, 9)) is None


def test_they_are_by_the_zone_of_the_schedule() -> None:
    schedule = ScheduleSettings(quiet_hours="08:00-20:00", timezone="Europe/Berlin")
    assert quiet_until(schedule, at(3, 9)) == at(3, 20)
    assert quiet_until(schedule, at(3, 21)) is None


def test_the_night_in_which_the_clock_is_set_forward_is_an_hour_shorter() -> None:
    found = quiet("22:00-06:00")
    begins = at(28, 22)
    end = found.until(begins)
    assert end == at(29, 6)
    assert end - begins.astimezone(UTC) == timedelta(hours=7)


def test_the_night_in_which_it_is_set_back_is_an_hour_longer() -> None:
    found = quiet("22:00-06:00")
    begins = at(24, 22, month=10)
    end = found.until(begins)
    assert end is not None
    assert end - begins.astimezone(UTC) == timedelta(hours=9)


def test_an_end_within_the_hour_that_is_there_twice_holds_in_both() -> None:
    found = quiet("22:00-02:30")
    first, second = at(25, 2, 10, month=10), at(25, 2, 10, month=10, fold=1)
    assert found.until(first) == at(25, 2, 30, month=10).astimezone(UTC)
    assert found.holds(second)
    assert found.until(second) == at(25, 2, 30, month=10, fold=1).astimezone(UTC)


def test_an_end_that_does_not_exist_comes_with_the_hour_after() -> None:
    found = quiet("22:00-02:30")
    assert found.holds(at(29, 1, 59))
    assert not found.holds(datetime(2026, 3, 29, 1, 0, tzinfo=UTC))  # 03:00 on the wall


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    st.tuples(st.times(), st.times()).filter(lambda pair: f"{pair[0]:%H:%M}" != f"{pair[1]:%H:%M}"),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
def test_it_is_quiet_until_it_is_not(now: datetime, times: tuple, zone: str) -> None:  # type: ignore[type-arg]
    found = quiet(f"{times[0]:%H:%M}-{times[1]:%H:%M}", ZoneInfo(zone))
    end = found.until(now)
    assert (end is not None) == found.holds(now)
    if end is not None:
        assert not found.holds(end)
        assert now < end <= now + timedelta(hours=26)
