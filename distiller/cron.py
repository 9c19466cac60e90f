"""Owns what a cron expression means: that of crontab(5), in which Sunday is 0 and 7. Must not know jobs.

APScheduler counts weekdays from Monday, so numbers become names. Where both the day of the month and the weekday are
given, both must hold, as APScheduler has it; crontab(5) would take either.
"""

import warnings
from datetime import datetime, tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger
from tzlocal import get_localzone

from proxy.errors import BadInput

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class Timer(NamedTuple):
    """When a job is due, and the setting that says so."""

    cron: str
    place: str


def trigger(expression: str, zone: tzinfo, place: str) -> Any:
    """An APScheduler trigger; BadInput, naming the setting's `place`, for what is no cron expression."""
    try:
        minute, hour, day, month, weekday = expression.split()
        return CronTrigger(
            minute=minute, hour=hour, day=day, month=month, day_of_week=_weekdays(weekday.lower()), timezone=zone
        )
    except ValueError as error:
        raise BadInput(f'{place} {expression!r} is no cron expression, such as "0 3 * * 0": {error}') from None


def zone_of(name: str) -> tzinfo:
    """The time zone of this name, which is known to exist; empty: the machine's own, UTC where it does not say one."""
    if name:
        return ZoneInfo(name)
    with warnings.catch_warnings():  # A guess may be another with each start, and what was missed is known by it.
        warnings.simplefilter("error")
        try:
            return get_localzone()
        except (UserWarning, ZoneInfoNotFoundError):
            return ZoneInfo("UTC")


def wall(moment: datetime) -> str:
    """The moment by the clock on the wall: the same for both that it shows twice in the night it is set back."""
    return f"{moment:%Y-%m-%d %H:%M}"


def _weekdays(field: str) -> str:
    """The days by name, comma-separated; ValueError for none."""
    if field == "*":
        return field
    return ",".join(dict.fromkeys(_DAYS[number % 7] for part in field.split(",") for number in _numbers(part)))


def _numbers(part: str) -> range:
    days, _, step = part.partition("/")
    first, _, last = ("0", "-", "6") if days == "*" else days.partition("-")
    start = _number(first)
    end = _number(last) if last else 6 if step else start
    if end < start and end == 0:  # "fri-sun", as people write it
        end = 7
    if end < start or (step and not int(step)):
        raise ValueError(f"the weekdays {part!r} are none")
    return range(start, end + 1, int(step or 1))


def _number(day: str) -> int:
    number = _DAYS.index(day) if day in _DAYS else int(day)
    if not 0 <= number <= 7:
        raise ValueError(f"there is no weekday {day!r}")
    return number
