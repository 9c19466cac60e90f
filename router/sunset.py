"""Owns whether a model of the usual teacher has ended: by the day that was set for it, or by what the log says of it.

A model that answered before and then said MISSED times in a row that it does not exist has ended, until it answers
again. Clients' exchanges tell, and audits: where a candidate answers everything, nobody else asks the teacher. Must not
ask a model itself, nor act on it: audits stop and golden sets take over (`router.golden`), workers go by
the day, and by what they are told themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial

from proxy.log import Latest, Log
from proxy.settings import SunsetSettings
from proxy.sunset import GONE, MISSING, NO_MODEL, SUCCESSOR

Misses = Mapping[str, tuple[int, datetime]]
"""For each model the requests in a row that found it gone, and since when."""
MISSED = 3
"""Exchanges in a row that found no such model: one may be a slip of the provider."""

# By ids, which are in order of time, as those of verdicts are.
_MISSED = f"""
WITH gone AS (
  SELECT id, ts, id AS exchange, model FROM exchanges
  WHERE served_by = 'teacher' AND status = 404 AND model IS NOT NULL AND contains(response, '{NO_MODEL}')
    AND teacher IS NULL
  UNION ALL
  SELECT id, ts, id, regexp_extract(reason, '{MISSING}([^;]+);', 1) FROM exchanges
  WHERE starts_with(reason, '{SUCCESSOR}') AND contains(reason, '{MISSING}')
  UNION ALL
  SELECT v.id, v.ts, e.id, e.model FROM verdicts v JOIN exchanges e ON e.id = v.exchange
  WHERE v.kind = 'audit' AND v.error = 'the teacher answered {GONE}' AND e.model IS NOT NULL AND e.teacher IS NULL
), answered AS (
  SELECT CASE WHEN served_by = 'teacher' THEN id END AS id, model FROM exchanges
  WHERE status = 200 AND model IN (SELECT model FROM gone) AND teacher IS NULL
  UNION ALL
  SELECT v.id, e.model FROM verdicts v JOIN exchanges e ON e.id = v.exchange
  WHERE v.kind = 'audit' AND v.error IS NULL AND e.teacher IS NULL
), latest AS (
  SELECT model, max(id) AS id FROM answered GROUP BY model
)
SELECT gone.model, count(DISTINCT gone.exchange), min(gone.ts) FROM gone JOIN latest ON latest.model = gone.model
WHERE latest.id IS NULL OR gone.id > latest.id
GROUP BY gone.model HAVING count(DISTINCT gone.exchange) >= {MISSED}
"""


@dataclass(frozen=True, slots=True)
class Sunset:
    """The end of one model; `since` is the day that was set (its start, UTC), or the first request it missed."""

    model: str
    since: datetime
    come: bool
    successor: str
    missed: int
    """Requests in a row that found it gone; 0 where only the day says so."""


def sunsets(log: Log, declared: Sequence[SunsetSettings], now: datetime) -> list[Sunset]:
    """All that have come or are known to come, by model."""
    return _all(_missed(log), declared, now)


def _missed(log: Log) -> Misses:
    return {model: (count, since) for model, count, since in log.query(_MISSED)}


def _all(missed: Misses, declared: Sequence[SunsetSettings], now: datetime) -> list[Sunset]:
    found = [_declared(one, one.shutdown, now) for one in declared if one.shutdown is not None]
    known = {one.model for one in found if one.come}
    successors = {one.model: one.successor for one in declared}
    late = [
        Sunset(model, since, True, successors.get(model, ""), count)
        for model, (count, since) in missed.items()
        if model not in known
    ]
    early = {one.model for one in late}  # A model may go before its day.
    return sorted([one for one in found if one.model not in early] + late, key=lambda one: one.model)


def _declared(one: SunsetSettings, shutdown: date, now: datetime) -> Sunset:
    day = datetime(shutdown.year, shutdown.month, shutdown.day, tzinfo=UTC)
    return Sunset(one.model, day, day <= now, one.successor, 0)


class Ended:
    """The models that have ended, by the day and by what the log says now."""

    def __init__(self, log: Log, declared: Sequence[SunsetSettings]) -> None:
        """Nothing is read yet."""
        self._missed, self._declared = Latest(log, partial(_missed, log)), declared

    def now(self) -> Mapping[str, Sunset]:
        """By model."""
        found = _all(self._missed.now(), self._declared, datetime.now(UTC))
        return {one.model: one for one in found if one.come}


def in_words(one: Sunset, now: datetime) -> str:
    """One line: what ends or has ended, since when, and what takes over."""
    takes = f"{one.successor} is asked in its place" if one.successor else "no successor is named"
    if not one.come:
        days = (one.since.date() - now.date()).days
        return f"{one.model} shuts down in {days} day{'' if days == 1 else 's'}, on {one.since:%Y-%m-%d}: then {takes}"
    watched = "golden sets take the place of its audits"
    if not one.missed:
        return f"{one.model} has ended, on {one.since:%Y-%m-%d}: {watched}; {takes}"
    asked = f"{one.missed} requests in a row found no such model since {one.since:%Y-%m-%d %H:%M}"
    return f"{one.model} has ended: {asked}; {watched}; {takes}"
