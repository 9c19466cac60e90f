"""Owns the runs of the schedule: what is to be done, is being done and was done, with its reason, outcome and cost.

Must not know how anything is done or when it is due. Events are appended and nothing is changed: a run is queued,
started, ended. One cause queues one run of a job, however often it is told of, so that nothing is done twice for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import duckdb

from proxy.ids import ulid
from proxy.log import Log

QUEUED, STARTED, ENDED = "queued", "started", "ended"
OK, FAILED, REFUSED, INTERRUPTED, SKIPPED = "ok", "failed", "refused", "interrupted", "skipped"
OUTCOMES = (OK, FAILED, REFUSED, INTERRUPTED, SKIPPED)
"""Refused: understood and declined, such as for too few exchanges. Skipped: not begun, and will not be."""

DISTILL = "distill"

_COLUMNS = (
    "id, job, kind, task, cause, reason, attempt, by_hand, due, queued, started, ended, state, outcome, detail, usd, "
    "student, until"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A run that is to be: of which job, of what kind, for which task if any, why, and not before `due`.

    `cause` tells one wish from the next of the same job: the moment of a cron expression, the id of a transition.
    `by_hand` is whether a person asked for it. `until` is the newest exchange it may learn from; None: not settled yet.
    """

    job: str
    kind: str
    cause: str
    reason: str
    due: datetime
    task: str | None = None
    attempt: int = 1
    by_hand: bool = False
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the log has it; moments are None where they have not come, `usd` where the cost is not known."""

    id: str
    job: str
    kind: str
    task: str | None
    cause: str
    reason: str
    attempt: int
    by_hand: bool
    due: datetime
    queued: datetime
    started: datetime | None
    ended: datetime | None
    state: str
    outcome: str | None
    detail: str | None
    usd: Decimal | None
    student: str | None
    until: str | None


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended, in a word and in words; `usd` is what it cost, None where that is not known."""

    outcome: str
    detail: str
    usd: Decimal | None = Decimal(0)
    student: str | None = None


def job_of(task: str) -> str:
    """The name of the job that distills a task."""
    return f"{DISTILL}:{task}"


def runs(log: Log, limit: int = 100, task: str | None = None) -> list[Run]:
    """The newest runs, of all jobs or of one task's, newest first."""
    rows = log.query(
        f"SELECT {_COLUMNS} FROM runs WHERE ($task IS NULL OR task = $task) ORDER BY id DESC LIMIT $limit",
        {"task": task, "limit": limit},
    )
    return [Run(*row) for row in rows]


def unended(log: Log) -> list[Run]:
    """What waits and what was begun, oldest first."""
    return [Run(*row) for row in log.query(f"SELECT {_COLUMNS} FROM runs WHERE state <> '{ENDED}' ORDER BY id")]


def waiting(log: Log) -> list[Run]:
    """What is queued, oldest first."""
    return [run for run in unended(log) if run.state == QUEUED]


def latest(log: Log) -> list[Run]:
    """The last run of each job."""
    rows = log.query(
        f"SELECT {_COLUMNS} FROM runs WHERE id IN "
        f"(SELECT max(run) FROM run_events WHERE state = '{QUEUED}' GROUP BY job) ORDER BY id"
    )
    return [Run(*row) for row in rows]


def last_due(log: Log, cause: str) -> dict[str, datetime]:
    """For each job the latest moment for which a run with such a cause was recorded, whatever became of it."""
    return dict(log.query("SELECT job, max(due) FROM runs WHERE starts_with(cause, ?) GROUP BY job", [cause]))


def queue(log: Log, wish: Wish, now: datetime) -> str | None:
    """Queue a run and return its id; None where this cause had its run, or another run of the job waits already."""
    return log.transaction(lambda c: None if _known(c, wish) or _waits(c, wish) else _queue(c, wish, now))


def record(log: Log, wish: Wish, end: End, now: datetime) -> str | None:
    """Record a run that is over before it began, such as one that was missed; None where its cause had its run."""

    def work(connection: duckdb.DuckDBPyConnection) -> str | None:
        if _known(connection, wish):
            return None
        name = _queue(connection, wish, now)
        _end(connection, name, end, now)
        return name

    return log.transaction(work)


def begin(log: Log, run: Run, until: str | None, now: datetime) -> bool:
    """Start a run; False where it is no longer waiting. It may learn from exchanges up to `until`."""

    def work(connection: duckdb.DuckDBPyConnection) -> bool:
        if _state(connection, run.id) != QUEUED:
            return False
        _append(connection, run.id, STARTED, now, until=until)
        return True

    return log.transaction(work)


def finish(log: Log, run: Run, end: End, now: datetime, again: Wish | None = None) -> bool:
    """End a run, and in the same transaction queue what it is tried again as; False where it had ended already."""

    def work(connection: duckdb.DuckDBPyConnection) -> bool:
        if _state(connection, run.id) in (ENDED, None):
            return False
        _end(connection, run.id, end, now)
        if again is not None:
            _queue(connection, again, now)
        return True

    return log.transaction(work)


def once_more(run: Run, reason: str, due: datetime, attempt: int) -> Wish:
    """The same again: for the same cause, and from the same exchanges."""
    return Wish(run.job, run.kind, run.cause, reason, due, run.task, attempt, run.by_hand, run.until)


def cost(log: Log, run: Run, now: datetime, kinds: Sequence[str]) -> Decimal | None:
    """What was charged to the run's task since it started, of these kinds of spend; None where some is unpriced."""
    ((usd, unpriced),) = log.query(
        "SELECT coalesce(sum(TRY_CAST(usd AS DECIMAL(38, 15))), 0), count(*) FILTER (TRY_CAST(usd AS DECIMAL(38, 15)) "
        "IS NULL) FROM spend WHERE task = ? AND ts >= ? AND ts <= ? AND kind IN (SELECT unnest(CAST(? AS VARCHAR[])))",
        [run.task, run.started, now, list(kinds)],
    )
    return None if unpriced else usd


def trained(log: Log, run: Run) -> str | None:
    """The student that a distillation has made since it started, also where it could not say so any more."""
    if run.kind != DISTILL:
        return None
    rows = log.query(
        "SELECT model FROM spend WHERE kind = 'training' AND task = ? AND ts >= ? AND model IS NOT NULL "
        "ORDER BY ts DESC LIMIT 1",
        [run.task, run.started],
    )
    return str(rows[0][0]) if rows else None


def _known(connection: duckdb.DuckDBPyConnection, wish: Wish) -> bool:
    found = connection.execute(
        "SELECT 1 FROM run_events WHERE state = ? AND job = ? AND cause = ? AND attempt = ? LIMIT 1",
        [QUEUED, wish.job, wish.cause, wish.attempt],
    ).fetchone()
    return found is not None


def _waits(connection: duckdb.DuckDBPyConnection, wish: Wish) -> bool:
    """What a person asks for is not held up by what waits for a quiet hour."""
    found = connection.execute(
        "SELECT 1 FROM run_events q WHERE q.job = $1 AND q.state = $2 AND q.by_hand >= $3 "
        "AND NOT EXISTS (SELECT 1 FROM run_events o WHERE o.run = q.run AND o.state <> $2) LIMIT 1",
        [wish.job, QUEUED, wish.by_hand],
    ).fetchone()
    return found is not None


def _state(connection: duckdb.DuckDBPyConnection, run: str) -> str | None:
    row = connection.execute("SELECT state FROM run_events WHERE run = ? ORDER BY id DESC LIMIT 1", [run]).fetchone()
    return None if row is None else str(row[0])


def _queue(connection: duckdb.DuckDBPyConnection, wish: Wish, now: datetime) -> str:
    name = ulid()
    _append(
        connection, name, QUEUED, now, job=wish.job, kind=wish.kind, task=wish.task, cause=wish.cause,
        reason=wish.reason, attempt=wish.attempt, by_hand=wish.by_hand, due=wish.due, until=wish.until,
    )  # fmt: skip
    return name


def _end(connection: duckdb.DuckDBPyConnection, run: str, end: End, now: datetime) -> None:
    _append(connection, run, ENDED, now, outcome=end.outcome, detail=end.detail, usd=end.usd, student=end.student)


def _append(connection: duckdb.DuckDBPyConnection, run: str, state: str, now: datetime, **columns: Any) -> None:
    names = ["id", "ts", "run", "state", *columns]
    connection.execute(
        f"INSERT INTO run_events ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
        [ulid(), now, run, state, *columns.values()],
    )
