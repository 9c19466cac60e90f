"""Owns the page of all tasks: how much traffic each has, what it costs, who answers it. Must not judge candidates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from distiller.dashboard.desk import Desk
from distiller.dashboard.reading import FRESH_SECONDS
from proxy.log import Log
from router.books import Books, Entry, read_books
from router.figures import by_task, charges
from router.freezes import frozen
from router.registry import CANARY, LIVE, SHADOW, Candidate, candidates
from router.series import days_of, forecast

DAYS = 30
FORECAST_DAYS = 62  # that a forecast looks back over, as `stillroom report` does
_FURTHEST = (LIVE, CANARY, SHADOW)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task over the last DAYS days; `usd` is what the teacher was paid, None where none of it has a price.

    `forecast` is what the teacher comes to in the running month, None where that cannot be told yet.

    `stage` and `share` are those of the candidate that is furthest on, "" without any; `slow` is the 95th percentile
    of the latency in milliseconds.
    """

    task: str | None
    exchanges: int
    served: int
    fallbacks: int
    failed: int
    slow: float | None
    usd: float | None
    unpriced: int
    forecast: float | None
    stage: str
    share: float
    candidate: str
    frozen: bool


_BY: Mapping[str, Callable[[TaskRow], Any]] = MappingProxyType(
    {
        "task": lambda row: (row.task or "").lower(),
        "exchanges": lambda row: row.exchanges,
        "served": lambda row: row.served / row.exchanges if row.exchanges else 0.0,
        "fallbacks": lambda row: row.fallbacks,
        "failed": lambda row: row.failed,
        "slow": lambda row: row.slow or 0.0,
        "spend": lambda row: -1.0 if row.usd is None else row.usd,
        "forecast": lambda row: -1.0 if row.forecast is None else row.forecast,
        "stage": lambda row: len(_FURTHEST) - _FURTHEST.index(row.stage) if row.stage else 0,
    }
)
"""What each column is sorted by."""


def tasks_router(desk: Desk) -> APIRouter:
    """The page."""
    router = APIRouter()

    @router.get("/tasks")
    def tasks(request: Request, sort: str = "exchanges", way: str = "down", q: str = "") -> Response:
        today = datetime.now(UTC).date()  # The period moves on at midnight, whatever the log does.
        rows = desk.readers.now(("tasks", today), task_rows, FRESH_SECONDS)
        by = (sort if sort in _BY else "exchanges", "up" if way == "up" else "down")
        found = arranged(rows, q, *by)
        kept = urlencode({"q": q}) + "&" if q else ""
        return desk.page(
            request,
            "tasks.html",
            rows=found,
            total=len(rows),
            sort=by,
            q=q,
            days=DAYS,
            proxy=desk.settings.proxy,
            link=f"/ui/tasks?{kept}",
        )

    return router


def task_rows(log: Log) -> list[TaskRow]:
    """Every task with exchanges in the last DAYS days, or a candidate that answers or may come to."""
    now = datetime.now(UTC)
    since = now - timedelta(days=DAYS)
    ahead, ice = _ahead(candidates(log)), frozen(log)
    paid: dict[str | None, list[Any]] = {}
    for charge in charges(log, since):
        if charge.kind == "teacher":
            paid.setdefault(charge.task, []).append(charge)
    volumes = {one.task: one for one in by_task(log, since)}
    expected = forecasts(read_books(log, now.date() - timedelta(days=FORECAST_DAYS)), now)
    rows = []
    for task in [*volumes, *(name for name in ahead if name not in volumes)]:
        one, best, own = volumes.get(task), ahead.get(task or ""), paid.get(task, [])
        priced = [charge.usd for charge in own if charge.usd is not None]
        slow = one.latency.quantile(0.95) if one else None
        rows.append(
            TaskRow(
                task=task,
                exchanges=one.volume.exchanges if one else 0,
                served=one.volume.served if one else 0,
                fallbacks=one.volume.fallbacks if one else 0,
                failed=one.volume.errors_5xx + one.volume.unanswered if one else 0,
                slow=None if slow is None else 1000 * slow,
                usd=float(sum(priced)) if priced or not own else None,
                unpriced=sum(charge.unpriced for charge in own),
                forecast=expected.get(task),
                stage=best.stage if best else "",
                share=best.share if best else 0.0,
                candidate=best.id if best else "",
                frozen=(task or "") in ice,
            )
        )
    return rows


def forecasts(books: Books, now: datetime) -> dict[str | None, float]:
    """Of each task what the teacher comes to in the month of `now`; what has no price or is too new is not here."""
    entries: dict[str | None, list[Entry]] = {}
    for entry in books.entries:
        if entry.kind == "teacher":
            entries.setdefault(entry.task, []).append(entry)
    found = {}
    for task, own in entries.items():
        usd = forecast(days_of(replace(books, entries=own, volumes=[]), {}), now).teacher_usd
        if usd is not None and not all(entry.events == entry.unpriced for entry in own):
            found[task] = usd
    return found


def arranged(rows: Sequence[TaskRow], q: str, column: str, way: str) -> list[TaskRow]:
    """Those whose name holds `q`, in order; of equal ones the name decides."""
    words = q.lower().split()
    found = [row for row in rows if all(word in (row.task or "(no task)").lower() for word in words)]
    found.sort(key=lambda row: (row.task or "").lower())
    return sorted(found, key=_BY[column], reverse=way == "down")


def _ahead(known: Sequence[Candidate]) -> dict[str, Candidate]:
    """Of each task the candidate that is furthest on, of several the newest."""
    best: dict[str, Candidate] = {}
    for candidate in (one for one in known if one.stage in _FURTHEST):
        before = best.get(candidate.task)
        if before is None or _FURTHEST.index(candidate.stage) <= _FURTHEST.index(before.stage):
            best[candidate.task] = candidate
    return best
