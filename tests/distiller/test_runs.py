from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from distiller.runs import (
    ENDED,
    FAILED,
    INTERRUPTED,
    OK,
    QUEUED,
    SKIPPED,
    STARTED,
    End,
    Run,
    Wish,
    begin,
    cost,
    finish,
    last_due,
    once_more,
    queue,
    record,
    runs,
    unended,
)
from proxy.log import Log
from tests.logs import migrated
from tests.router.conftest import add_rows

NOW = datetime(2026, 3, 1, 3, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def wish(cause: str = "cron 1", **changes: object) -> Wish:
    given: dict[str, object] = {"job": "distill:a", "kind": "distill", "reason": "on a Sunday", "due": NOW, "task": "a"}
    return Wish(**(given | {"cause": cause} | changes))  # type: ignore[arg-type]


def the(log: Log, name: str | None) -> Run:
    (found,) = [run for run in runs(log) if run.id == name]
    return found


def test_a_run_goes_from_queued_to_ended_and_nothing_of_it_is_changed(log: Log) -> None:
    name = queue(log, wish(), NOW)
    run = the(log, name)
    assert (run.state, run.queued, run.started, run.outcome, run.usd) == (QUEUED, NOW, None, None, None)
    assert unended(log) == [run]
    later = NOW + timedelta(hours=1)
    assert begin(log, run, "exchange-9", NOW)
    assert the(log, name).state == STARTED
    assert finish(log, run, End(OK, "student-1 is a candidate", Decimal("0.1"), "student-1"), later)
    done = the(log, name)
    assert (done.state, done.started, done.ended, done.until) == (ENDED, NOW, later, "exchange-9")
    assert (done.outcome, done.detail, done.student) == (OK, "student-1 is a candidate", "student-1")
    assert done.usd == Decimal("0.1")
    assert unended(log) == []
    assert log.query("SELECT state FROM run_events ORDER BY id") == [(QUEUED,), (STARTED,), (ENDED,)]


def test_a_cause_has_one_run_however_often_it_is_told_of(log: Log) -> None:
    name = queue(log, wish(), NOW)
    assert queue(log, wish(), NOW) is None
    begin(log, the(log, name), None, NOW)
    finish(log, the(log, name), End(FAILED, "no"), NOW)
    assert queue(log, wish(), NOW) is None
    assert queue(log, wish(job="distill:b"), NOW) is not None
    assert queue(log, wish("cron 2"), NOW) is not None
    assert len(runs(log)) == 3


def test_a_job_waits_once_and_a_person_is_not_held_up_by_that(log: Log) -> None:
    assert queue(log, wish("cron 1"), NOW)
    assert queue(log, wish("volume 1"), NOW) is None
    assert queue(log, wish("hand 1", by_hand=True), NOW)
    assert queue(log, wish("hand 2", by_hand=True), NOW) is None
    assert [run.cause for run in unended(log)] == ["cron 1", "hand 1"]


def test_a_run_is_begun_once_and_ended_once(log: Log) -> None:
    run = the(log, queue(log, wish(), NOW))
    assert begin(log, run, None, NOW)
    assert not begin(log, run, None, NOW)
    assert finish(log, run, End(OK, ""), NOW)
    assert not finish(log, run, End(FAILED, ""), NOW, once_more(run, "again", NOW, 2))
    assert len(runs(log)) == 1


def test_what_is_tried_again_is_queued_with_the_end_and_keeps_its_cause_and_exchanges(log: Log) -> None:
    first = the(log, queue(log, wish(), NOW))
    begin(log, first, "exchange-9", NOW)
    first = the(log, first.id)
    due = NOW + timedelta(minutes=10)
    assert finish(log, first, End(INTERRUPTED, "killed"), NOW, once_more(first, "goes on", due, 2))
    second, old = runs(log)
    assert old.outcome == INTERRUPTED
    assert (second.cause, second.until, second.attempt, second.due) == ("cron 1", "exchange-9", 2, due)
    assert second.state == QUEUED


def test_what_was_over_before_it_began_has_a_row_too(log: Log) -> None:
    assert record(log, wish(), End(SKIPPED, "missed"), NOW)
    assert record(log, wish(), End(SKIPPED, "missed"), NOW) is None
    assert queue(log, wish(), NOW) is None
    (run,) = runs(log)
    assert (run.state, run.started, run.outcome) == (ENDED, None, SKIPPED)
    assert last_due(log, "cron") == {"distill:a": NOW}
    assert last_due(log, "volume") == {}


def test_runs_are_the_newest_first_and_of_a_task_where_it_is_named(log: Log) -> None:
    for number in range(5):
        record(log, wish(f"cron {number}", job=f"distill:{number % 2}", task=str(number % 2)), End(OK, ""), NOW)
    assert [run.cause for run in runs(log, 3)] == ["cron 4", "cron 3", "cron 2"]
    assert [run.cause for run in runs(log, task="1")] == ["cron 3", "cron 1"]


def test_the_cost_is_what_was_charged_to_the_task_meanwhile_to_the_last_digit(log: Log) -> None:
    run = the(log, queue(log, wish(), NOW))
    begin(log, run, None, NOW)
    run, end = the(log, run.id), NOW + timedelta(hours=1)

    def charged(usd: float | None, minutes: int, kind: str = "training", task: str = "a") -> None:
        ts = NOW + timedelta(minutes=minutes)
        add_rows(log, "spend", [{"id": str(minutes), "ts": ts, "task": task, "kind": kind, "usd": usd}])

    for minutes in (10, 20, 30):
        charged(0.1, minutes)
    charged(5.0, -1)
    charged(5.0, 61)
    charged(5.0, 15, kind="shadow")
    charged(5.0, 15, task="b")
    assert cost(log, run, end, ["training", "repeat"]) == Decimal("0.3")
    charged(None, 40, kind="repeat")
    assert cost(log, run, end, ["training", "repeat"]) is None
