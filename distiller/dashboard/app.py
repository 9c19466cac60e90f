"""Owns the dashboard as a whole: which pages there are, what follows them, how what goes wrong looks.

Composition only. It is mounted at `/ui` on the admin port, with whose other paths it shares threads: the guard sees to
it that some are left for them.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from distiller.dashboard.actions import record
from distiller.dashboard.desk import HERE, Desk
from distiller.dashboard.events import Changes, events_router
from distiller.dashboard.exchanges_page import exchanges_router
from distiller.dashboard.guard import Deed, Guard
from distiller.dashboard.ledger_page import ledger_router
from distiller.dashboard.login import login_router
from distiller.dashboard.overview import overview_router
from distiller.dashboard.reading import FRESH_SECONDS, LONG_SECONDS, Readers
from distiller.dashboard.schedule_page import schedule_router
from distiller.dashboard.sessions import Sessions
from distiller.dashboard.settings_page import settings_router
from distiller.dashboard.students_page import TRAINING, students_router, training_mark
from distiller.dashboard.task_page import task_router
from distiller.dashboard.tasks_page import tasks_router
from distiller.settings import Settings
from proxy.admin import Tokens
from proxy.errors import BadInput, Refused, StillroomError, Unavailable
from proxy.vitals import Vitals
from router.searching import confined

_log = logging.getLogger("stillroom.dashboard")

STATUS = {BadInput: 400, Refused: 409, Unavailable: 503}
AGAIN = (FRESH_SECONDS + 1, LONG_SECONDS + 1)  # seconds after a change, when no page shows what was before it any more


def create_dashboard(
    settings: Settings,
    config: Path | None,
    tokens: Tokens,
    vitals: Vitals,
    readers: Readers,
    closing: Callable[[], bool],
) -> Guard:
    """Build it; `closing` says, from any thread, whether the process is about to end."""
    desk = Desk(settings, config, Sessions(), readers, closing)
    app = dashboard(desk, tokens, vitals)
    return Guard(app, desk.sessions, partial(_record, desk), partial(refusal, desk), not tokens.operator)


def dashboard(desk: Desk, tokens: Tokens, vitals: Vitals) -> FastAPI:
    """The pages, without the guard around them."""
    app = FastAPI(
        openapi_url=None, docs_url=None, redoc_url=None, default_response_class=HTMLResponse,
        redirect_slashes=False,  # It would lead to a whole address, whose scheme is not known behind a TLS proxy.
    )  # fmt: skip
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.include_router(login_router(desk, tokens))
    marks = {"log": partial(_snapshot, desk), TRAINING: partial(training_mark, desk.settings.courses)}
    app.include_router(events_router(Changes(marks, desk.closing, AGAIN)))
    searchers = Readers(desk.settings, lambda settings: confined(settings.log, settings.folder))
    for router in (
        overview_router(desk, vitals), tasks_router(desk), task_router(desk), students_router(desk),
        exchanges_router(desk, searchers), ledger_router(desk), schedule_router(desk), settings_router(desk),
    ):  # fmt: skip
        app.include_router(router)

    @app.exception_handler(StillroomError)
    async def told(request: Request, error: Exception) -> Response:
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
        return await asyncio.to_thread(desk.page, request, "error.html", status, why=str(error))

    @app.exception_handler(duckdb.Error)
    async def unread(request: Request, error: Exception) -> Response:
        _log.warning("a page could not read the log: %s", str(error).partition("\n")[0])
        why = "the log could not be read just now: load this page again"
        return await asyncio.to_thread(desk.page, request, "error.html", 503, why=why)

    @app.exception_handler(RequestValidationError)  # An address with a part that no page knows.
    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: Exception) -> Response:
        status, why = (error.status_code, str(error.detail)) if isinstance(error, HTTPException) else (404, "")
        why = "there is no such page" if status == 404 else why
        return await asyncio.to_thread(desk.page, request, "error.html", status, why=why)

    return app


def refusal(desk: Desk, status: int, why: str) -> Response:
    """The guard's answer to whom it does not let in: nothing that only others may see."""
    return HTMLResponse(desk.templates.get_template("refused.html").render(why=why, theme=""), status)


def _record(desk: Desk, deed: Deed) -> None:
    """Keep a deed; where the log does not take it, the process's own messages do."""
    try:
        with desk.writing() as log:
            record(log, deed)
    except (StillroomError, duckdb.Error) as error:
        _log.error("an action could not be recorded (%s): %s", str(error).splitlines()[0], deed)


def _snapshot(desk: Desk) -> object:
    """Differs whenever anything in the log has changed; None while it cannot be read."""
    try:
        with desk.readers.log() as log:
            return log.snapshot()
    except (StillroomError, duckdb.Error):
        return None
