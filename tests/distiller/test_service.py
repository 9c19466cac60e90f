import asyncio
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.service import _Service, due, run_controller
from distiller.settings import DistillerSettings, Settings
from proxy.errors import BadInput, Unavailable
from proxy.freeing import maintaining
from proxy.log import Log
from proxy.settings import LogSettings
from router.controller import only_one
from router.freezes import freeze, thaw
from router.ledger import charge
from tests.logs import migrated
from tests.router.conftest import TASK, insert, known


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    return log


def test_a_task_is_due_by_what_its_newest_student_never_saw(log: Log) -> None:
    insert(log, [f"{number}" for number in range(30)])
    assert due(log, fewest=10, fewest_ever=31) == []
    assert due(log, fewest=10, fewest_ever=30) == [TASK]
    known(log, card={"data_until": datetime.now(UTC).isoformat(), "labels": [], "static": [], "max_tokens": 1})
    assert due(log, fewest=10, fewest_ever=30) == []
    insert(log, [f"later {number}" for number in range(10)])
    assert due(log, fewest=10, fewest_ever=30) == [TASK]
    assert due(log, fewest=11, fewest_ever=30) == []
    known(log, "rival", kind="hosted", card={"data_until": datetime.now(UTC).isoformat(), "rival": "cheap"})
    assert due(log, fewest=10, fewest_ever=30) == [TASK]  # A rival learned from nothing.


def test_a_student_that_was_trained_and_is_no_candidate_is_not_trained_again_at_once(log: Log) -> None:
    insert(log, [f"{number}" for number in range(30)])
    charge(log, "training", 1.0, 0.0, "hour", task=TASK, model="student-that-lost")
    assert due(log, fewest=10, fewest_ever=30) == []
    insert(log, [f"later {number}" for number in range(10)])
    assert due(log, fewest=10, fewest_ever=30) == [TASK]
    charge(log, "training", 1.0, 1.0, "hour", task=TASK, model="student-1")
    known(log, "student-1")  # What a candidate has seen is on its card.
    assert due(log, fewest=10, fewest_ever=30) == [TASK]


def test_a_frozen_task_is_never_due(log: Log) -> None:
    insert(log, ["a"] * 3)
    freeze(log, TASK, "audit week")
    assert due(log, fewest=1, fewest_ever=1) == []
    thaw(log, TASK, "over")
    assert due(log, fewest=1, fewest_ever=1) == [TASK]


def test_the_schedule_holds_what_was_asked_for(log: Log) -> None:
    options = DistillerSettings(schedule="0 3 * * 0", new_exchanges=500)
    jobs = _Service(log, Settings(distiller=options), None).schedule().get_jobs()
    assert sorted(tuple(job.args) for job in jobs) == [(), (1,), (500,)]
    assert [tuple(job.args) for job in _Service(log, Settings(), None).schedule().get_jobs()] == [()]


def test_maintenance_drops_what_is_too_old(log: Log, tmp_path: Path) -> None:
    insert(log, ["old"], ts=datetime.now(UTC) - timedelta(days=91))
    fresh = insert(log, ["fresh"], ts=datetime.now(UTC) - timedelta(days=89))
    asyncio.run(_Service(log, Settings(home=str(tmp_path), log=LogSettings(keep_days=90)), None)._maintain())
    assert log.query("SELECT id FROM exchanges") == [(fresh[0],)]


def test_maintenance_that_cannot_be_does_not_end_the_controller(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with maintaining(tmp_path, 0):
        asyncio.run(_Service(log, Settings(home=str(tmp_path), log=LogSettings(keep_days=90)), None)._maintain())
    assert "maintenance failed, trying again" in caplog.text


def test_a_bad_cron_expression_is_refused(log: Log) -> None:
    with pytest.raises(BadInput, match="no cron expression"):
        _Service(log, Settings(distiller=DistillerSettings(schedule="sometimes")), None).schedule()


def test_a_second_controller_on_one_home_is_refused(tmp_path: Path) -> None:
    with socket.socket() as admin, only_one(tmp_path), pytest.raises(Unavailable, match="another controller"):
        asyncio.run(run_controller(Settings(home=str(tmp_path)), None, admin, asyncio.Event()))
