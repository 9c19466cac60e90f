"""Owns the checks of the log: that it opens, what it weighs, whose prices are missing, whether the clock went back.

Must not change anything: it is opened to be read, and closed again.
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from distiller.finding import FIX, OK, WARN, Finding
from distiller.printable import printable
from distiller.settings import Settings
from proxy.errors import StillroomError
from proxy.log import Log, open_log
from proxy.migrations import MIGRATIONS, version

SOON_DAYS = 30  # A disk that is full before that wants a decision now.
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)  # Before it this program was not written.
_AHEAD = timedelta(minutes=1)
_UNPRICED = """
SELECT coalesce(model, '(none)'), count(*) FROM spend WHERE usd IS NULL AND ts > now() - INTERVAL 7 DAY
GROUP BY model ORDER BY count(*) DESC, model
"""
_MOST_NAMES = 5


def check_log(settings: Settings) -> Iterator[Finding]:
    """Version, growth, prices, clock, and tasks that are named in the settings and nowhere else."""
    if not settings.log.catalog and not (settings.folder / "log" / "catalog.sqlite").exists():
        yield Finding("log", OK, "not there yet; `stillroom serve` makes it")
        yield _clock(None)
        return
    try:
        log = open_log(settings.log, settings.folder, read_only=True)
        found = _found(log)
    except StillroomError as error:
        yield Finding("log", FIX, str(error))
        return
    try:
        yield _version(found)
        if found == len(MIGRATIONS):
            yield from _contents(settings, log)
    finally:
        log.close()


def _found(log: Log) -> int:
    """Its version; 0 where it was made just now, and its maker has not come to the tables yet."""
    try:
        return version(log)
    except duckdb.CatalogException:
        return 0


def _version(found: int) -> Finding:
    told = f"version {found} of {len(MIGRATIONS)}"
    if found > len(MIGRATIONS):
        return Finding("log", FIX, f"{told}: it was written by a newer Stillroom; install that one")
    return Finding("log", OK, told if found == len(MIGRATIONS) else f"{told}; `stillroom serve` brings it up to date")


def _contents(settings: Settings, log: Log) -> Iterator[Finding]:
    ((first, last),) = log.query("SELECT min(ts), max(ts) FROM exchanges")
    yield _clock(last)
    yield _growth(settings, first)
    yield _unpriced(log)
    if first is not None:
        yield from _tasks(settings, {task for (task,) in log.query("SELECT DISTINCT task FROM exchanges")})


def _clock(last: datetime | None) -> Finding:
    now = datetime.now(UTC)
    if now < EARLIEST:
        return Finding("clock", FIX, f"it says {now:%Y-%m-%d %H:%M} UTC: set it, for example by NTP")
    if last is not None and last > now + _AHEAD:
        told = f"it says {now:%Y-%m-%d %H:%M:%S} UTC, and the newest exchange is of {last:%Y-%m-%d %H:%M:%S}"
        return Finding("clock", FIX, f"{told}: it was set back; see to NTP")
    return Finding("clock", OK, f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _growth(settings: Settings, first: datetime | None) -> Finding:
    """What a day of traffic weighs, against what is kept and what is free."""
    data = Path(settings.log.data or settings.folder / "log" / "data")
    if "://" in settings.log.data or first is None or not data.is_dir():
        return Finding("retention", OK, "no files of the log on this disk yet" if not settings.log.data else str(data))
    days = (datetime.now(UTC) - first) / timedelta(days=1)
    if days < 1:
        return Finding("retention", OK, "less than a day of traffic: too early to say what a day weighs")
    keep, size = settings.log.keep_days, _size(data)
    free = shutil.disk_usage(data).free - (settings.spool.min_free_mb << 20)
    daily = max(size / (min(days, keep) if keep else days), 1.0)
    told = f"{daily / 1e6:,.1f} MB a day, {size / 1e9:,.2f} GB now"
    if keep and daily * keep - size > free:
        return Finding("retention", WARN, f"{told}: log.keep_days = {keep} does not fit on this disk; keep fewer")
    if not keep and free / daily < SOON_DAYS:
        return Finding("retention", WARN, f"{told}: full in {free / daily:,.0f} days; set log.keep_days")
    return Finding("retention", OK, f"{told}; {f'kept {keep} days' if keep else 'kept for ever (log.keep_days = 0)'}")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _unpriced(log: Log) -> Finding:
    rows = log.query(_UNPRICED)
    if not rows:
        return Finding("unpriced", OK, "everything of the last seven days has a price")
    named = ", ".join(f"{printable(model)} ({count:,})" for model, count in rows[:_MOST_NAMES])
    told = f"charges of the last seven days without a price: {named}"
    return Finding("unpriced", WARN, f'{told}; set [money.prices."NAME"] for each')


def _tasks(settings: Settings, known: set[str | None]) -> Iterator[Finding]:
    """A name that was mistyped declares something of a task that never comes."""
    declared: Sequence[tuple[str, str]] = [
        *((f"router.tasks.{task}", task) for task in settings.router.tasks),
        *((f"router.rivals.{name}.tasks", task) for name, one in settings.router.rivals.items() for task in one.tasks),
        *((f"teacher.tasks.{task}", task) for task in settings.teacher.tasks),
        *((f"schedule.tasks.{task}", task) for task in settings.schedule.tasks),
    ]
    for place, task in declared:
        if task not in known:
            told = f"{place} has no effect yet: no exchange is of a task {task!r}; `stillroom tasks` has the names"
            yield Finding("tasks", WARN, told)
