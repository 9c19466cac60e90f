"""Owns the first page: what was spent, avoided and saved, how much there is, and what needs somebody.

Must not compute a figure itself: money is the ledger's, traffic is `router.figures`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial

from fastapi import APIRouter, Request, Response

from distiller.dashboard.capture import capture
from distiller.dashboard.desk import Desk
from distiller.dashboard.needs import from_keys, from_log, from_process, ordered
from distiller.dashboard.reading import FRESH_SECONDS
from distiller.dashboard.settings_page import key_lines
from distiller.dashboard.tasks_page import FORECAST_DAYS, TaskRow, arranged, task_rows
from proxy.errors import StillroomError
from proxy.log import Log
from proxy.vitals import Vitals
from router.books import Books, read_books
from router.figures import Point, Times, Volume, series, totals
from router.ledger import Report, reckoned, rivals
from router.series import Day, Forecast, days_of, forecast

CHART_DAYS = 30
NEEDS_SECONDS = 30.0  # between two looks at what the log tells: it takes longer than the rest
_MOST_TASKS = 6


@dataclass(frozen=True, slots=True)
class Overview:
    """The running month's money, its traffic, the last days and the last 24 hours."""

    report: Report
    forecast: Forecast
    days: Sequence[Day]
    volume: Volume
    latency: Times
    first_byte: Times
    hours: Sequence[tuple[datetime, Volume]]
    tasks: Sequence[TaskRow]

    @property
    def passed(self) -> int:
        """For how many tasks a hosted model passes."""
        return sum(line.rival is not None for line in self.report.tasks)


def overview_router(desk: Desk, vitals: Vitals) -> APIRouter:
    """The page."""
    router = APIRouter()

    @router.get("/")
    def overview(request: Request) -> Response:
        now = datetime.now(UTC)
        hour = now.replace(minute=0, second=0, microsecond=0)  # Forecasts and periods move on by themselves, too.
        floor = desk.settings.router.slice_floor
        found = desk.readers.now(("overview", hour), partial(read_overview, floor=floor, now=now), FRESH_SECONDS)
        told = desk.readers.now(("needs", hour), lambda log: from_log(log, desk.settings, now), NEEDS_SECONDS)
        report, counted = vitals.report(), capture(desk.settings.metrics)
        needs = ordered(told, from_process(report, counted), from_keys(_budgets(desk)))
        return desk.page(
            request,
            "overview.html",
            found=found,
            needs=needs,
            vitals=report,
            capture=counted,
            proxy=desk.settings.proxy,
        )

    return router


def read_overview(log: Log, floor: float, now: datetime) -> Overview:
    """As of now (UTC)."""
    month = now.date().replace(day=1)
    books, known = read_books(log, min(month, now.date() - timedelta(days=FORECAST_DAYS))), rivals(log, floor)
    since = datetime(month.year, month.month, 1, tzinfo=UTC)
    volume, latency, first_byte = totals(log, since)
    last = now - timedelta(hours=24)
    return Overview(
        report=reckoned(_from(books, month), known),
        forecast=forecast(days_of(books, known), now),
        days=days_of(_from(books, now.date() - timedelta(days=CHART_DAYS - 1)), known),
        volume=volume,
        latency=latency,
        first_byte=first_byte,
        hours=_every_hour(series(log, "hour", last), last, now),
        tasks=arranged(task_rows(log), "", "exchanges", "down")[:_MOST_TASKS],
    )


def _from(books: Books, since: date) -> Books:
    """The part of the books from this day on."""
    return replace(
        books,
        since=since,
        entries=[one for one in books.entries if one.day >= since],
        volumes=[one for one in books.volumes if one.day >= since],
    )


def _every_hour(points: Sequence[Point], since: datetime, until: datetime) -> list[tuple[datetime, Volume]]:
    """With the hours in which nothing was asked."""
    known = {point.start: point.volume for point in points}
    start = since.replace(minute=0, second=0, microsecond=0)
    count = int((until - start).total_seconds() // 3600) + 1
    hours = [start + timedelta(hours=number) for number in range(count)]
    return [(hour, known.get(hour, Volume())) for hour in hours]


def _budgets(desk: Desk) -> dict[str, float | None]:
    """The share of its budget that each good key has used; a damaged file is the settings page's to tell of."""
    try:
        return {line.key.name: line.used for line in key_lines(desk.settings) if not line.key.revoked}
    except StillroomError:
        return {}
