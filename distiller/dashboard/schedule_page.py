"""Owns the page of the schedule: what comes next, what was run, why and at what cost; running, pausing, resuming.

Must not run anything: what is asked for here waits in the log for the controller, as from the command line.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from distiller import jobs
from distiller.dashboard.desk import Desk, form_of, tell
from distiller.quiet import quiet_until
from distiller.runs import runs
from proxy.errors import BadInput

PAGE = "/ui/schedule"
_MOST_RUNS = 100


def schedule_router(desk: Desk) -> APIRouter:
    """The page and its actions."""
    router = APIRouter()

    @router.get("/schedule")
    def schedule(request: Request) -> Response:
        now = datetime.now(UTC)
        minute = now.replace(second=0, microsecond=0)  # What comes next is of the moment, too.
        known = desk.readers.now(("jobs", minute), lambda log: jobs.jobs(log, desk.settings, now))
        done = desk.readers.now("runs", lambda log: runs(log, _MOST_RUNS))
        settings = desk.settings.schedule
        quiet = quiet_until(settings, now)
        return desk.page(request, "schedule.html", jobs=known, runs=done, settings=settings, quiet=quiet)

    @router.post("/schedule/run")
    def run(request: Request) -> Response:
        name, reason = _asked(request, "asked for on the dashboard")
        with desk.writing() as log:
            waiting = jobs.request_run(log, desk.settings, name, reason, datetime.now(UTC))
        names = ", ".join(each.job for each in waiting)
        return desk.done(request, PAGE, f"In the queue: {names}. It starts as soon as its place is free.")

    @router.post("/schedule/pause")
    def pause(request: Request) -> Response:
        name, reason = _asked(request)
        with desk.writing() as log:
            job = jobs.pause(log, desk.settings, name, reason, datetime.now(UTC))
        return desk.done(request, PAGE, f"{job} is paused: it begins nothing by itself.")

    @router.post("/schedule/resume")
    def resume(request: Request) -> Response:
        name, reason = _asked(request, "resumed on the dashboard")
        with desk.writing() as log:
            job = jobs.resume(log, desk.settings, name, reason, datetime.now(UTC))
        return desk.done(request, PAGE, f"{job} goes by its times again.")

    return router


def _asked(request: Request, usual: str = "") -> tuple[str, str]:
    """Which job, and why; BadInput without a reason where one is needed."""
    form = form_of(request)
    name, reason = form.get("job", ""), form.get("reason", "").strip() or usual
    tell(request, name, reason)
    if not reason:
        raise BadInput("say why: the reason is kept in the log")
    return name, reason
