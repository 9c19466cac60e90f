"""Owns figures for whoever looks: totals, series and lines of a period, in milliseconds however long the log is.

Read from the sums of `proxy.rollups`, so they are of now and outlive the exchanges. Exchanges are counted by the hour,
money by the day (UTC): a period begins with the one that `since` is in, and ends with the one before `until`, or the
one that `until` is within. US dollars, exact; None is unknown, never 0. Must not know what is done with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

from proxy.log import Log
from proxy.rollups import BOUNDS_MS, query

Step = Literal["hour", "day", "month"]
_BUCKETS = range(len(BOUNDS_MS) + 1)
_ROUTED = "path IS NOT NULL"  # What has a price, and so what a candidate could have answered or could not.
_SINCE, _UNTIL = "CAST($since AS TIMESTAMP)", "CAST($until AS TIMESTAMP)"
_IN_HOURS = f"({_SINCE} IS NULL OR hour >= date_trunc('hour', {_SINCE})) AND ({_UNTIL} IS NULL OR hour < {_UNTIL})"
_IN_DAYS = f"({_SINCE} IS NULL OR day >= CAST({_SINCE} AS DATE)) AND ({_UNTIL} IS NULL OR day < {_UNTIL})"
_VOLUME = f"""
CAST(coalesce(sum(exchanges) FILTER ({_ROUTED}), 0) AS BIGINT),
CAST(coalesce(sum(exchanges) FILTER ({_ROUTED} AND served_by <> 'teacher'), 0) AS BIGINT),
{", ".join(f"CAST(coalesce(sum({name}), 0) AS BIGINT)" for name in (
    "fallbacks", "partials", "errors_4xx", "errors_5xx", "unanswered",
    "prompt_tokens", "cached_tokens", "completion_tokens", "request_bytes", "response_bytes",
))}
"""  # fmt: skip
_TIMES = ", ".join(
    f"CAST(coalesce(sum({name}), 0) AS BIGINT)"
    for kind in ("latency", "first_byte")
    for name in (f"{kind}_us", *(f"{kind}_{number}" for number in _BUCKETS))
)
_MONEY = """
CASE WHEN sum(charges) > sum(unpriced) THEN sum(usd) END, CAST(sum(charges) AS BIGINT), CAST(sum(unpriced) AS BIGINT),
sum(quantity)
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """How much there was. `exchanges` are those with a price, `served` of these not by the teacher; the rest is of all.

    `unanswered` got no status; `partials` broke off.
    """

    exchanges: int = 0
    served: int = 0
    fallbacks: int = 0
    partials: int = 0
    errors_4xx: int = 0
    errors_5xx: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    request_bytes: int = 0
    response_bytes: int = 0

    @property
    def share_served(self) -> float | None:
        """What part the teacher did not answer, in [0, 1]."""
        return self.served / self.exchanges if self.exchanges else None


@dataclass(frozen=True, slots=True)
class Times:
    """How long it took, in seconds: the counts of a histogram with the bounds of `proxy.rollups`, and their sum."""

    seconds: float = 0.0
    counts: tuple[int, ...] = (0,) * len(_BUCKETS)

    @property
    def mean(self) -> float | None:
        """None where nothing was measured."""
        return self.seconds / sum(self.counts) if any(self.counts) else None

    def quantile(self, share: float) -> float | None:
        """About what `share` of them stayed within: even within a bucket; of the last one no more than its start."""
        rank, before = share * sum(self.counts), 0
        for number, count in enumerate(self.counts):
            if count and before + count >= rank:
                low = BOUNDS_MS[number - 1] if number else 0
                high = BOUNDS_MS[number] if number < len(BOUNDS_MS) else low
                return (low + (high - low) * max(rank - before, 0) / count) / 1000
            before += count
        return None


@dataclass(frozen=True, slots=True)
class Point:
    """One hour, day or month, by its start."""

    start: datetime
    volume: Volume


@dataclass(frozen=True, slots=True)
class TaskVolume:
    """One task; None is what has no name."""

    task: str | None
    volume: Volume
    latency: Times
    first_byte: Times


@dataclass(frozen=True, slots=True)
class ModelVolume:
    """One model that was asked, and who answered: `served_by` as the log has it, `teacher` as it is named."""

    model: str | None
    served_by: str
    teacher: str | None
    volume: Volume
    latency: Times


@dataclass(frozen=True, slots=True)
class Charge:
    """Charges of one kind, for one task and model. `usd` is of the priced ones; None where there is none."""

    task: str | None
    kind: str
    model: str | None
    path: str | None
    unit: str | None
    usd: Decimal | None
    charges: int
    unpriced: int
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class DayCharge:
    """Charges of one kind on one day."""

    day: date
    kind: str
    usd: Decimal | None
    charges: int
    unpriced: int
    quantity: Decimal


def totals(log: Log, since: datetime | None = None, until: datetime | None = None) -> tuple[Volume, Times, Times]:
    """All of a period together, with latency and the time to the first byte."""
    ((*columns,),) = query(log, f"SELECT {_VOLUME}, {_TIMES} FROM hours WHERE {_IN_HOURS}", _period(since, until))
    return _volume(columns), *_times(columns)


def series(
    log: Log, step: Step, since: datetime | None = None, until: datetime | None = None, task: str | None = None
) -> list[Point]:
    """A period in steps, oldest first; steps without exchanges are not there. `task`: of that one only."""
    rows = query(
        log,
        f"SELECT date_trunc('{step}', hour) AS start, {_VOLUME} FROM hours "
        f"WHERE {_IN_HOURS} AND hour IS NOT NULL AND ($task IS NULL OR task = $task) GROUP BY start ORDER BY start",
        {**_period(since, until), "task": task},
    )
    return [Point(_utc(start), _volume(columns)) for start, *columns in rows]


def by_task(log: Log, since: datetime | None = None, until: datetime | None = None) -> list[TaskVolume]:
    """Each task of a period, the largest first."""
    rows = query(
        log,
        f"SELECT task, {_VOLUME}, {_TIMES} FROM hours WHERE {_IN_HOURS} GROUP BY task HAVING sum(exchanges) > 0 "
        "ORDER BY sum(exchanges) DESC, task",
        _period(since, until),
    )
    return [TaskVolume(task, _volume(columns), *_times(columns)) for task, *columns in rows]


def by_model(
    log: Log, since: datetime | None = None, until: datetime | None = None, most: int = 20, task: str | None = None
) -> list[ModelVolume]:
    """The `most` used of models and who answered, of what has a price; `task`: of that one only."""
    rows = query(
        log,
        f"SELECT model, served_by, teacher, {_VOLUME}, {_TIMES} FROM hours "
        f"WHERE {_IN_HOURS} AND {_ROUTED} AND ($task IS NULL OR task = $task) "
        "GROUP BY model, served_by, teacher HAVING sum(exchanges) > 0 "
        "ORDER BY sum(exchanges) DESC, model, served_by, teacher LIMIT $most",
        {**_period(since, until), "most": most, "task": task},
    )
    return [
        ModelVolume(model, by, teacher, _volume(columns), _times(columns)[0]) for model, by, teacher, *columns in rows
    ]


def charges(log: Log, since: datetime | None = None, until: datetime | None = None) -> list[Charge]:
    """What was charged in a period, by task, kind, model, path and unit; the dearest first."""
    names = "task, kind, model, path, unit"
    rows = query(
        log,
        f"SELECT {names}, {_MONEY} FROM days WHERE {_IN_DAYS} GROUP BY {names} "
        f"ORDER BY sum(usd) DESC, sum(charges) DESC, {names}",
        _period(since, until),
    )
    return [Charge(*row) for row in rows]


def charges_by_day(
    log: Log, since: datetime | None = None, until: datetime | None = None, task: str | None = None
) -> list[DayCharge]:
    """What was charged each day, by kind, oldest first; `task`: for that one only."""
    rows = query(
        log,
        f"SELECT day, kind, {_MONEY} FROM days WHERE {_IN_DAYS} AND day IS NOT NULL "
        "AND ($task IS NULL OR task = $task) GROUP BY day, kind ORDER BY day, kind",
        {**_period(since, until), "task": task},
    )
    return [DayCharge(*row) for row in rows]


def unpriced(log: Log, since: datetime | None = None, until: datetime | None = None) -> int:
    """Charges without a price in a period."""
    ((count,),) = query(
        log, f"SELECT CAST(coalesce(sum(unpriced), 0) AS BIGINT) FROM days WHERE {_IN_DAYS}", _period(since, until)
    )
    return int(count)


def _period(since: datetime | None, until: datetime | None) -> dict[str, Any]:
    return {"since": _plain(since), "until": _plain(until)}


def _plain(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _utc(moment: datetime | date) -> datetime:
    return datetime(moment.year, moment.month, moment.day, getattr(moment, "hour", 0), tzinfo=UTC)


def _volume(columns: Sequence[Any]) -> Volume:
    return Volume(*columns[:_WIDTH])


def _times(columns: Sequence[Any]) -> tuple[Times, Times]:
    """The last columns: microseconds and counts, twice."""
    half = len(_BUCKETS) + 1
    first, second = columns[-2 * half : -half], columns[-half:]
    return Times(first[0] / 1e6, tuple(first[1:])), Times(second[0] / 1e6, tuple(second[1:]))


_WIDTH = len(Volume.__dataclass_fields__)
