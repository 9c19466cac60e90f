"""Owns the commands about the schedule: what runs when, what people ask of it, and the process a distillation runs in.

Nothing is run here but by `trainer`, which the controller starts: what people ask for goes through the log, and the
controller sees it within seconds. Heavy imports wait inside the command.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from distiller.command_tools import opened_log, show, wait_politely
from distiller.settings_file import load_settings
from proxy.errors import BadInput

if TYPE_CHECKING:  # duckdb comes with it.
    from distiller.runs import Run
    from distiller.settings import Settings
    from proxy.log import Log


def schedule(arguments: argparse.Namespace) -> int:
    """Show what runs when and what ran; run a job now, pause or resume it."""
    from distiller.running import controlled
    from distiller.schedule_table import asked_lines, schedule_table

    settings, action, name = load_settings(arguments.config), arguments.action, arguments.name
    log = opened_log(settings)
    working = controlled(settings.folder)
    if action == "list":
        return show(arguments, _list(log, settings, working, arguments.runs), schedule_table)
    if not name:
        raise BadInput(f"say which job: stillroom schedule {action} NAME, with a name from `stillroom schedule list`")
    found: dict[str, Any] = {"action": action, "controller": working}
    found |= _asked(log, settings, action, name, arguments.reason)
    return show(arguments, found, asked_lines)


def _list(log: "Log", settings: "Settings", working: bool, most: int) -> dict[str, Any]:
    from distiller.cron import zone_of
    from distiller.jobs import jobs
    from distiller.quiet import quiet_until
    from distiller.runs import runs

    schedule, now = settings.schedule, datetime.now(UTC)
    return {
        "controller": working,
        "timezone": str(zone_of(schedule.timezone)),
        "quiet_hours": schedule.quiet_hours,
        "quiet_until": quiet_until(schedule, now),
        "jobs": [asdict(job) for job in jobs(log, settings, now)],
        "runs": [asdict(run) for run in runs(log, most)],
    }


def _asked(log: "Log", settings: "Settings", action: str, name: str, reason: str) -> dict[str, Any]:
    from distiller import jobs

    now = datetime.now(UTC)
    if action == "run":
        waiting: Sequence[Run] = jobs.request_run(log, settings, name, reason, now)
        return {"runs": [asdict(run) for run in waiting]}
    do = jobs.pause if action == "pause" else jobs.resume
    return {"job": do(log, settings, name, reason, now)}


def trainer(arguments: argparse.Namespace) -> int:
    """One scheduled distillation; started by the controller."""
    wait_politely()
    from proxy.logs import set_up
    from proxy.supervisor import end_with_parent

    end_with_parent()
    settings = load_settings(arguments.config)
    set_up(settings.logging.format, settings.logging.level, "trainer")
    from distiller.runs import FAILED, OK, End
    from distiller.trainer import distill_once, settle_in, sweep, training_place
    from proxy.errors import Unavailable

    settle_in()
    try:
        with training_place(settings, arguments.task, arguments.gpu):
            sweep(settings.students)
            end = distill_once(opened_log(settings), settings, arguments.task, arguments.until)
    except Unavailable as error:
        end = End(FAILED, str(error))
    print(json.dumps({"outcome": end.outcome, "detail": end.detail, "student": end.student}), flush=True)
    return 0 if end.outcome == OK else 1
