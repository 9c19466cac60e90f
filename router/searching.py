"""Owns how exchanges are found in the log: newest first, a page at a time, in the time a person waits.

Few columns of a short stretch of time are looked at first, and longer ones only while something is missing, so that
what is asked of ten million exchanges mostly reads those of an hour. A page goes on where the one before ended, by time
and id, never by counting. Who searches may do nothing else with the connection (`confined`). Must not show anything.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from proxy.errors import BadInput, Unavailable
from proxy.log import Log, open_log
from proxy.settings import LogSettings
from router.filters import Condition

FIRST = timedelta(hours=1)  # the stretch looked at first
GROWS = 6  # times as long is the next one
EXCERPT = 240  # characters of a text on a page
MOST = 500  # on one page
MEMORY_MB, THREADS = 512, 2
_AT_ONCE = 100  # whole exchanges held
_READING = 5.0  # seconds at least to read what was found, so that finding it was not in vain
_TOO_LARGE = "the search needs more memory than it may have: choose a shorter time range"
_IDS = """
SELECT id, ts FROM exchanges
WHERE ts >= $since AND ts <= $until AND ($before IS NULL OR ts < $until OR id < $before) AND {condition}
ORDER BY ts DESC, id DESC LIMIT {limit:d}
"""
_LAST_MESSAGE = (
    "CASE WHEN request_encoding = 'utf-8' AND json_valid(request) THEN request ->> '$.messages[#-1].content' END"
)
_ROWS = f"""
SELECT id, ts, task, model, served_by, status, latency_ms, prompt_tokens, completion_tokens, partial,
       coalesce(error, fallback), left({_LAST_MESSAGE}, {EXCERPT}), left(coalesce(answer, tool_calls), {EXCERPT})
FROM exchanges WHERE id IN (SELECT unnest(CAST($ids AS VARCHAR[]))) AND ts BETWEEN $since AND $until
ORDER BY ts DESC, id DESC
"""
_EXPORT = """
SELECT * EXCLUDE (logprobs) FROM exchanges
WHERE id IN (SELECT unnest(CAST($ids AS VARCHAR[]))) AND ts BETWEEN $since AND $until ORDER BY ts DESC, id DESC
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended: time and id of its last exchange, or the time down to which was looked in vain."""

    ts: datetime
    id: str | None = None

    def __str__(self) -> str:
        """As it stands in a link; `read_place` reads it."""
        return f"{self.ts.isoformat()}~{self.id or ''}"


@dataclass(frozen=True, slots=True)
class Line:
    """One exchange on a page; texts are excerpts, None where there is none."""

    id: str
    ts: datetime
    task: str | None
    model: str | None
    served_by: str
    status: int
    latency_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    partial: bool
    error: str | None
    asked: str | None
    answered: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """One page. `further` is where to go on; None where the range is at its end.

    `whole` is False where the time was over first: then `further` says how far back everything was looked at.
    """

    lines: tuple[Line, ...]
    further: Place | None
    whole: bool


def confined(settings: LogSettings, home: Path) -> Log:
    """The log for who searches: read-only, no other file or address in reach, bounded memory, settings locked."""
    log = open_log(settings, home, read_only=True)
    data = settings.data or str((home / "log" / "data").absolute())
    try:
        for statement, *values in (
            (f"SET threads = {THREADS}",),
            (f"SET memory_limit = '{MEMORY_MB}MB'",),
            ("SET temp_directory = ''",),
            ("SET allowed_directories = $1", [data]),
            ("SET enable_external_access = false",),
            ("SET lock_configuration = true",),
        ):
            log.query(statement, values)
    except BaseException:
        log.close()
        raise
    return log


def search(
    log: Log, asked: Condition, since: datetime, until: datetime, limit: int, after: Place | None = None,
    seconds: float = 10.0,
) -> Found:  # fmt: skip
    """Up to `limit` exchanges that are asked for, the newest first, from `since` to `until` or on from `after`.

    After `seconds` it ends with what it has. BadInput where the condition cannot be computed, Unavailable where what
    was found takes too long to read, or too much memory.
    """
    if not 0 < limit <= MOST:
        raise BadInput(f"a page has from 1 to {MOST} exchanges, not {limit}")
    ends = time.monotonic() + seconds
    found, further, whole = _newest(log, asked, since, after or Place(until), limit, seconds)
    with _reading(log, ends - time.monotonic()):
        return Found(_lines(log, found), further, whole)


def rows(
    opened: Callable[[], AbstractContextManager[Log]], asked: Condition, since: datetime, until: datetime, limit: int,
    seconds: float = 60.0,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Whole exchanges that are asked for, the newest first, as they stand in the log but for log-probabilities.

    Few are held at a time, however many are asked for, and no log is open while whoever reads them takes their time.
    Unavailable where the `seconds` of searching are over before all are found.
    """
    used, left, place = 0.0, limit, Place(until)
    while left > 0:
        with opened() as log:
            began = time.monotonic()
            found, further, whole = _newest(log, asked, since, place, min(left, _AT_ONCE), seconds - used)
            with _reading(log, seconds - used - (time.monotonic() - began)):
                some = _whole(log, found)
            used += time.monotonic() - began
        yield from some
        if not whole:
            raise Unavailable(f"the export took longer than {seconds:g} s: choose a shorter time range")
        if further is None:
            return
        left, place = left - len(found), further


def _newest(
    log: Log, asked: Condition, since: datetime, high: Place, limit: int, seconds: float
) -> tuple[list[tuple[str, datetime]], Place | None, bool]:
    """Ids and times of the newest before `high`, where to go on, and whether the time sufficed."""
    ends, stretch = time.monotonic() + seconds, FIRST
    found: list[tuple[str, datetime]] = []
    while high.ts >= since and len(found) < limit:
        low = since if high.ts - since <= stretch else high.ts - stretch  # Never before the first of all years.
        left = ends - time.monotonic()
        some = None if left <= 0 else _ids(log, asked, low, high, limit - len(found), left)
        if some is None:
            return found, high, False
        found += some
        if len(found) == limit:
            return found, Place(found[-1][1], found[-1][0]), True
        if low == since:
            break
        high, stretch = Place(low - timedelta(microseconds=1)), stretch * GROWS
    return found, None, True


def _whole(log: Log, found: list[tuple[str, datetime]]) -> list[dict[str, Any]]:
    if not found:
        return []
    cursor = log.connection.execute(_EXPORT, _between(found))
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def read_place(text: str) -> Place:
    """The place that a link names; BadInput where it is none."""
    moment, mark, identity = text.partition("~")
    damaged = BadInput("the link to go on from is damaged: search again")
    try:
        ts = datetime.fromisoformat(moment)
        if not mark or ts.tzinfo is None or len(identity) > 64:
            raise damaged
        return Place(ts.astimezone(UTC), identity or None)
    except (ValueError, OverflowError):
        raise damaged from None


@contextmanager
def within(log: Log, seconds: float) -> Iterator[None]:
    """What the connection does is interrupted after `seconds`: duckdb.InterruptException."""
    timer = threading.Timer(seconds, log.connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _reading(log: Log, left: float) -> Iterator[None]:
    """For what is read of those that were found, in the time that is `left`."""
    try:
        with within(log, max(left, _READING)):
            yield
    except duckdb.InterruptException:
        raise Unavailable("what was found takes too long to read: choose a shorter time range") from None
    except duckdb.OutOfMemoryException:
        raise Unavailable(_TOO_LARGE) from None


def _ids(
    log: Log, asked: Condition, since: datetime, until: Place, limit: int, seconds: float
) -> list[tuple[str, datetime]] | None:
    """Those of one stretch; None where the time was over."""
    places = {"since": since, "until": until.ts, "before": until.id, **asked.parameters}
    try:
        with within(log, seconds):
            return [(one, ts) for one, ts in log.query(_IDS.format(condition=asked.sql, limit=limit), places)]
    except duckdb.InterruptException:
        return None
    except duckdb.OutOfMemoryException:
        raise Unavailable(_TOO_LARGE) from None
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        raise BadInput(f"the filter cannot be computed: {str(error).splitlines()[0]}") from None


def _lines(log: Log, found: list[tuple[str, datetime]]) -> tuple[Line, ...]:
    return tuple(Line(*row) for row in log.query(_ROWS, _between(found))) if found else ()


def _between(found: list[tuple[str, datetime]]) -> dict[str, Any]:
    return {"ids": [one for one, _ in found], "since": found[-1][1], "until": found[0][1]}
