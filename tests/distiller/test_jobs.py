from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.jobs import CHORES, check_timers, jobs, pause, request_run, resume, timers
from distiller.pauses import paused
from distiller.runs import DISTILL, OK, End, Wish, record, runs
from distiller.schedule_settings import ScheduleSettings, TaskScheduleSettings
from distiller.settings import DistillerSettings, Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from proxy.settings import LogSettings
from tests.logs import migrated
from tests.router.conftest import TASK, insert, known

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
OWN = Settings(
    schedule=ScheduleSettings(timezone="UTC", drift=True, tasks={"own": TaskScheduleSettings(cron="0 4 * * 0")}),
    distiller=DistillerSettings(schedule="0 3 * * 0", new_exchanges=500, min_exchanges=5),
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def test_what_goes_by_the_clock_is_what_has_an_expression() -> None:
    assert set(timers(Settings())) == set(CHORES)
    assert {name: one.cron for name, one in timers(OWN).items() if name not in CHORES} == {
        DISTILL: "0 3 * * 0", "distill:own": "0 4 * * 0",
    }  # fmt: skip
    quiet = ScheduleSettings(retention="", tasks={"own": TaskScheduleSettings(cron="")})
    assert set(timers(Settings(schedule=quiet))) == set(CHORES) - {"retention"}
    elsewhere = Settings(log=LogSettings(catalog="postgres:dbname=lake"))
    assert set(timers(elsewhere)) == set(CHORES) - {"backup"}


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        (Settings(schedule=ScheduleSettings(prices="often")), r"schedule\.prices 'often'"),
        (Settings(distiller=DistillerSettings(schedule="sometimes")), r"distiller\.schedule 'sometimes'"),
        (Settings(schedule=ScheduleSettings(tasks={"a": TaskScheduleSettings("x")})), r"schedule\.tasks\.a\.cron 'x'"),
    ],
)
def test_an_expression_that_is_none_is_refused_by_its_place(settings: Settings, place: str) -> None:
    with pytest.raises(BadInput, match=f"{place} is no cron expression"):
        check_timers(settings)


def test_jobs_say_when_they_come_and_what_came_last(log: Log) -> None:
    known(log)
    record(log, Wish("prices", "prices", "cron 1", "cron", NOW), End(OK, "nothing new"), NOW)
    pause(log, OWN, "own", "audit week", NOW)
    found = {job.name: job for job in jobs(log, OWN, NOW)}
    assert list(found) == [*CHORES, DISTILL, "distill:own", f"distill:{TASK}"]
    assert found["retention"].next == datetime(2026, 3, 3, 1, 37, tzinfo=UTC)
    assert (found["prices"].last, found["backup"].last) == (runs(log)[0], None)
    assert (found["distill:own"].when, found[f"distill:{TASK}"].when) == (
        "0 4 * * 0; 500 new exchanges; drift", "500 new exchanges; drift",
    )  # fmt: skip
    assert found["distill:own"].paused is not None
    assert found[f"distill:{TASK}"].next is None


def test_a_person_asks_for_a_run_once_until_it_has_begun(log: Log) -> None:
    insert(log, ["a"])
    (run,) = request_run(log, OWN, TASK, "before the release", NOW)
    assert (run.job, run.task, run.kind, run.by_hand, run.reason) == (
        f"distill:{TASK}", TASK, DISTILL, True, "before the release",
    )  # fmt: skip
    assert request_run(log, OWN, f"distill:{TASK}", "again", NOW) == [run]
    (chore,) = request_run(log, OWN, "retention", "the disk", NOW)
    assert (chore.job, chore.task, chore.kind) == ("retention", None, "retention")


def test_all_that_has_something_new_can_be_asked_for(log: Log) -> None:
    insert(log, ["a"] * 4)
    with pytest.raises(Refused, match="no task has enough new exchanges"):
        request_run(log, OWN, DISTILL, "by hand", NOW)
    insert(log, ["b"])
    insert(log, ["c"] * 5, task="other")
    assert {run.task for run in request_run(log, OWN, DISTILL, "by hand", NOW)} == {TASK, "other"}


def test_a_job_is_paused_and_goes_on(log: Log) -> None:
    insert(log, ["a"])
    assert pause(log, OWN, TASK, "audit week", NOW) == f"distill:{TASK}"
    assert pause(log, OWN, DISTILL, "no GPU", NOW) == DISTILL
    assert set(paused(log)) == {f"distill:{TASK}", DISTILL}
    assert resume(log, OWN, DISTILL, "it is back", NOW) == DISTILL
    with pytest.raises(BadInput, match="retention is not paused"):
        resume(log, OWN, "retention", "so", NOW)
    assert {job.name for job in jobs(log, OWN, NOW) if job.paused} == {f"distill:{TASK}"}


@pytest.mark.parametrize(
    ("name", "hint"), [("retentoin", "did you mean 'retention'"), ("x", "stillroom schedule list")]
)
def test_what_is_no_job_and_no_task_is_refused_with_a_hint(log: Log, name: str, hint: str) -> None:
    for do in (request_run, pause, resume):
        with pytest.raises(BadInput, match=hint):
            do(log, OWN, name, "by hand", NOW)
