"""Owns the page of the ledger: a month, or all there is, to read and to take along. Must not compute a figure."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import partial
from types import MappingProxyType

from fastapi import APIRouter, Request, Response

from distiller.dashboard.desk import Desk
from distiller.dashboard.reading import FRESH_SECONDS
from distiller.report_commands import period
from distiller.statement import Statement, statement
from distiller.statement_formats import FORMATS
from proxy.errors import BadInput
from proxy.log import Log
from proxy.rollups import query

ALL = "all"
TYPES: Mapping[str, str] = MappingProxyType(
    {"csv": "text/csv", "json": "application/json", "html": "text/html", "pdf": "application/pdf"}
)
_MONTHS = """
SELECT DISTINCT date_trunc('month', day) AS month FROM days WHERE day IS NOT NULL
UNION SELECT DISTINCT CAST(date_trunc('month', hour) AS DATE) FROM hours WHERE hour IS NOT NULL
ORDER BY month DESC
"""


def ledger_router(desk: Desk) -> APIRouter:
    """The page, and the ledger as a file."""
    router = APIRouter()

    def made(month: str) -> Statement:
        now = datetime.now(UTC)
        since, until = (None, None) if month == ALL else period(month, "", "")
        read = partial(statement, since=since, until=until, floor=desk.settings.router.slice_floor, now=now)
        hour = now.replace(minute=0, second=0, microsecond=0)  # The forecast moves on by itself, too.
        return desk.readers.now(("ledger", month, hour), read, FRESH_SECONDS)

    @router.get("/ledger")
    def ledger(request: Request, month: str = "") -> Response:
        running = f"{datetime.now(UTC):%Y-%m}"
        months = [f"{one:%Y-%m}" for one in desk.readers.now("months", _months, FRESH_SECONDS)]
        chosen = month or running
        return desk.page(
            request, "ledger.html", one=made(chosen), month=chosen, running=running, all=ALL, formats=tuple(TYPES),
            months=sorted({*months, running, *({chosen} - {ALL})}, reverse=True),
        )  # fmt: skip

    @router.get("/ledger/file")
    def file(month: str = ALL, format: str = "csv") -> Response:
        if format not in TYPES:
            raise BadInput(f"a ledger comes as {', '.join(TYPES)}, not {format[:20]!r}")
        name = f"stillroom-ledger-{month}.{format}"  # The month is one, or `made` refuses it.
        content = FORMATS[format](made(month))
        return Response(
            content, media_type=TYPES[format], headers={"content-disposition": f'attachment; filename="{name}"'}
        )

    return router


def _months(log: Log) -> list[date]:
    """The months of which there is anything, the newest first."""
    return [month for (month,) in query(log, _MONTHS, {})]
