import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.jobs import request_run
from distiller.runs import OK, runs
from distiller.schedule_settings import ScheduleSettings
from distiller.service import run_controller
from distiller.settings import DistillerSettings, Settings
from proxy.backup import backups
from proxy.errors import BadInput, Unavailable
from router.controller import only_one
from tests.logs import migrated


def test_a_bad_cron_expression_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path), distiller=DistillerSettings(schedule="sometimes"))
    with socket.socket() as admin, pytest.raises(BadInput, match="no cron expression"):
        asyncio.run(run_controller(settings, None, admin, asyncio.Event()))
    assert list(tmp_path.iterdir()) == []


def test_a_second_controller_on_one_home_is_refused(tmp_path: Path) -> None:
    with socket.socket() as admin, only_one(tmp_path), pytest.raises(Unavailable, match="another controller"):
        asyncio.run(run_controller(Settings(home=str(tmp_path)), None, admin, asyncio.Event()))


async def test_what_a_person_asks_for_beside_a_running_controller_is_done_within_seconds(tmp_path: Path) -> None:
    # By no clock, as its time might come just now; backups are also made at the start.
    times = ScheduleSettings(compaction="", retention="", prices="", certificates="", backup="0 0 1 1 *")
    settings, stop = Settings(home=str(tmp_path), schedule=times), asyncio.Event()
    log = migrated(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as admin:
        running = asyncio.create_task(run_controller(settings, None, admin, stop))
        try:
            await becomes(lambda: {run.kind for run in runs(log) if run.outcome == OK} == {"backup"})
            request_run(log, settings, "compaction", "the disk", datetime.now(UTC))
            await becomes(lambda: {run.kind for run in runs(log) if run.outcome == OK} == {"backup", "compaction"})
        finally:
            stop.set()
            await asyncio.wait_for(running, 60)
    assert backups(tmp_path / "log" / "catalog.sqlite")
    assert (tmp_path / "state" / "schedule.sqlite").exists()


async def becomes(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(200):
        while not check():
            await asyncio.sleep(0.1)
