from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from distiller.cron import trigger, wall, zone_of
from proxy.errors import BadInput

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


def days(expression: str, zone: str = "UTC", start: datetime = MONDAY, count: int = 7) -> list[datetime]:
    found, fires = trigger(expression, ZoneInfo(zone), "schedule.retention"), []
    previous = None
    for _ in range(count):
        previous = found.get_next_fire_time(previous, previous or start)
        fires.append(previous)
    return fires


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("0", "Sun"), ("7", "Sun"), ("1", "Mon"), ("1-5", "Mon Tue Wed Thu Fri"), ("5-7", "Fri Sat Sun"),
        ("sat,SUN", "Sat Sun"), ("*/2", "Tue Thu Sat Sun"), ("fri-sun", "Fri Sat Sun"), ("1-5/2", "Mon Wed Fri"),
        ("3,3", "Wed"), ("4/2", "Thu Sat"),
    ],
)  # fmt: skip
def test_weekdays_are_those_of_crontab(field: str, names: str) -> None:
    fires = days(f"0 3 * * {field}", count=14)
    week = [fire for fire in fires if fire < MONDAY + timedelta(days=7)]
    assert " ".join(f"{fire:%a}" for fire in week) == names


@pytest.mark.parametrize(
    "wrong",
    ["sometimes", "0 3 * *", "0 3 * * 8", "0 3 * * 5-1", "0 3 * * */0", "61 * * * *", "0 3 * * x", "* * * * * *"],
)
def test_what_is_no_cron_expression_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match=r"schedule\.retention .* is no cron expression"):
        trigger(wrong, UTC, "schedule.retention")


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 3 * * *"])
@pytest.mark.parametrize("start", [datetime(2026, 3, 26, tzinfo=UTC), datetime(2026, 10, 22, tzinfo=UTC)])
def test_each_day_has_its_moment_over_both_changes_of_the_clock(expression: str, start: datetime) -> None:
    fires = [wall(fire) for fire in days(expression, "Europe/Berlin", start, 7)]
    named = list(dict.fromkeys(fires))  # What there is twice in the night of an hour too many has one name.
    dates = [name[:10] for name in named]
    assert dates == sorted(set(dates))
    assert (datetime.fromisoformat(dates[-1]) - datetime.fromisoformat(dates[0])).days == len(dates) - 1
    assert len(named) >= 6


def test_an_empty_zone_is_the_machines_own() -> None:
    assert zone_of("Asia/Tokyo") == ZoneInfo("Asia/Tokyo")
    assert datetime(2026, 1, 1, tzinfo=zone_of("")).utcoffset() is not None
