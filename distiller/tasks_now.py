"""Owns what the log says of tasks just now: their traffic of a day, their stage, what was taken back, one in detail.

Must not know how it is shown, nor what else there is to watch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from proxy.log import Log
from router.lifecycle import standing
from router.registry import CANARY, LIVE, SHADOW, SUPERSEDED, Candidate, candidates
from router.settings import RouterSettings

DAY = timedelta(days=1)
MINUTES = 5  # over which a rate is taken
_MOST_MOVES = 10
_TRAFFIC = """
SELECT task, count(*), count(*) FILTER (ts > $recent), count(*) FILTER (served_by NOT IN ('teacher', 'stillroom')),
       count(*) FILTER (fallback IS NOT NULL), count(*) FILTER (partial OR coalesce(status, 0) NOT BETWEEN 200 AND 499),
       quantile_cont(latency_ms, 0.5), quantile_cont(latency_ms, 0.95), max(ts)
FROM exchanges WHERE ts > $since AND served_by <> 'stillroom' GROUP BY task
"""
# What is no number has no price.
_SPENT = """
SELECT task, CAST(sum(TRY_CAST(usd AS DECIMAL(38, 15))) AS DOUBLE),
       count(*) FILTER (TRY_CAST(usd AS DECIMAL(38, 15)) IS NULL)
FROM spend WHERE ts > $since AND kind <> 'serving' GROUP BY task
"""
_RETIRED = """
SELECT task, candidate, reason FROM transitions
WHERE ts > $since AND stage_to = 'retired' AND stage_from IN ('canary', 'live') AND NOT starts_with(reason, $superseded)
ORDER BY id DESC
"""
_MOVES = f"""
SELECT ts, candidate, stage_from, stage_to, reason FROM transitions WHERE task = ? ORDER BY id DESC LIMIT {_MOST_MOVES}
"""
_FURTHEST = (LIVE, CANARY, SHADOW)


@dataclass(frozen=True, slots=True)
class TaskNow:
    """One task over the last day; `a_minute` is its traffic of the last MINUTES, `failed` broke off or got no answer.

    `stage`, `share` and `candidate` are those of the candidate that is furthest on; "" where none is at any. `usd` is
    all that was charged for it, None where nothing of that has a price. Latencies in milliseconds.
    """

    task: str | None
    stage: str
    share: float
    candidate: str
    a_minute: float
    exchanges: int
    by_candidate: int
    fallbacks: int
    failed: int
    median_ms: float | None
    slow_ms: float | None
    usd: float | None
    unpriced: int
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Retired:
    """A candidate that answered clients and was taken back, by evidence or by an operator."""

    task: str
    candidate: str
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """One transition, as it was made."""

    at: datetime
    candidate: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """What is known of one task's candidates: as `stillroom status` says it, newest first, and their latest moves."""

    task: str
    candidates: Sequence[Mapping[str, Any]]
    moves: Sequence[Move]


def tasks_now(log: Log, now: datetime) -> tuple[TaskNow, ...]:
    """Every task with traffic in the last day, or a candidate; the busiest first."""
    since = {"since": now - DAY}
    recent = since | {"recent": now - timedelta(minutes=MINUTES)}
    traffic = {row[0]: row[1:] for row in log.query(_TRAFFIC, recent)}
    spent = {row[0]: row[1:] for row in log.query(_SPENT, since)}
    ahead = _ahead(candidates(log))
    names = [*traffic, *(task for task in ahead if task not in traffic)]
    found = [_task(name, traffic.get(name), spent.get(name), ahead.get(name or "")) for name in names]
    return tuple(sorted(found, key=lambda one: (-one.exchanges, one.task or "")))


def retired_since(log: Log, since: datetime) -> tuple[Retired, ...]:
    """Who was taken back; a student that a newer one followed was not."""
    rows = log.query(_RETIRED, {"since": since, "superseded": SUPERSEDED})
    return tuple(Retired(*row) for row in rows)


def task_detail(log: Log, task: str, settings: RouterSettings) -> TaskDetail:
    """One task; without candidates there is little to say of it."""
    known = [standing(log, candidate, settings) for candidate in reversed(candidates(log, task))]
    return TaskDetail(task, known, [Move(*row) for row in log.query(_MOVES, [task])])


def _ahead(known: Sequence[Candidate]) -> dict[str, Candidate]:
    """Of each task the candidate that is furthest on, of several the newest."""
    best: dict[str, Candidate] = {}
    for candidate in (one for one in known if one.stage in _FURTHEST):
        before = best.get(candidate.task)
        if before is None or _FURTHEST.index(candidate.stage) <= _FURTHEST.index(before.stage):
            best[candidate.task] = candidate
    return best


def _task(
    name: str | None, traffic: Sequence[Any] | None, spent: Sequence[Any] | None, ahead: Candidate | None
) -> TaskNow:
    count, recent, by_candidate, fallbacks, failed, median, slow, last = traffic or (0, 0, 0, 0, 0, None, None, None)
    usd, unpriced = spent or (None, 0)
    return TaskNow(
        task=name,
        stage=ahead.stage if ahead else "",
        share=ahead.share if ahead else 0.0,
        candidate=ahead.id if ahead else "",
        a_minute=recent / MINUTES,
        exchanges=count,
        by_candidate=by_candidate,
        fallbacks=fallbacks,
        failed=failed,
        median_ms=median,
        slow_ms=slow,
        usd=usd,
        unpriced=unpriced,
        last=last,
    )
