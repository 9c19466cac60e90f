"""Owns the quiet hours: when the machine is left to its clients, so that nothing heavy begins. Must not know jobs.

They go by the clock on the wall of a time zone: on the day it is set forward they are an hour shorter or begin later,
on the day it is set back an hour longer.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from distiller.cron import zone_of
from distiller.schedule_settings import QUIET, ScheduleSettings


@dataclass(frozen=True, slots=True)
class Quiet:
    """From one time of day to another, over midnight where the second is the earlier."""

    start: time
    end: time
    zone: tzinfo

    def holds(self, now: datetime) -> bool:
        """Whether it is quiet at that moment."""
        wall = now.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= wall < self.end
        return wall >= self.start or wall < self.end

    def until(self, now: datetime) -> datetime | None:
        """When it ends, in UTC; None where it is not quiet."""
        if not self.holds(now):
            return None
        today = now.astimezone(self.zone).date()
        ends = [
            datetime.combine(today + timedelta(days=days), self.end, self.zone).replace(fold=fold).astimezone(UTC)
            for days in (0, 1)
            for fold in (0, 1)
        ]
        return min(moment for moment in ends if moment > now and not self.holds(moment))


def quiet_hours(text: str, zone: tzinfo) -> Quiet | None:
    """From a setting that was checked; None where there are none."""
    found = QUIET.fullmatch(text)
    if found is None:
        return None
    from_hour, from_minute, to_hour, to_minute = map(int, found.groups())
    return Quiet(time(from_hour, from_minute), time(to_hour, to_minute), zone)


def quiet_until(schedule: ScheduleSettings, now: datetime) -> datetime | None:
    """When what is heavy may begin again, in UTC; None where it may now."""
    found = quiet_hours(schedule.quiet_hours, zone_of(schedule.timezone))
    return None if found is None else found.until(now)
