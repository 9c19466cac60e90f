from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from distiller.run_costs import bill
from distiller.runs import DISTILL, Run, Wish, begin, queue, runs
from proxy.log import Log
from router.charges import Charge, append
from tests.logs import migrated

START = datetime(2026, 3, 1, 3, tzinfo=UTC)
END = START + timedelta(hours=2)


def begun(log: Log, kind: str = DISTILL, task: str | None = "a") -> Run:
    queue(log, Wish("job", kind, "cron 1", "on a Sunday", START, task), START)
    begin(log, runs(log)[0], None, START)
    return runs(log)[0]


def charge(log: Log, *given: object, **more: object) -> None:
    log.transaction(lambda connection: append(connection, [Charge(*given, **more)]))  # type: ignore[arg-type]


def spend(log: Log) -> list[tuple[object, ...]]:
    return log.query("SELECT kind, task, model, usd, quantity FROM spend ORDER BY id")


def test_hours_that_came_to_nothing_are_charged_once(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    run = begun(log)
    assert bill(log, 1.5)(run, END) == Decimal(3)
    assert bill(log, 1.5)(run, END) == Decimal(3)
    assert spend(log) == [("training", "a", None, 3.0, 2.0)]


def test_a_distillation_that_charged_its_hours_is_not_charged_again(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    run = begun(log)
    charge(log, "repeat", 0.25, 10, "call", task="a", moment=START + timedelta(minutes=1))
    charge(log, "training", 0.5, 1, "hour", task="a", model="student-1", moment=END - timedelta(minutes=1))
    assert bill(log, 1.5)(run, END) == Decimal("0.75")
    assert len(spend(log)) == 2


def test_what_is_unpriced_is_not_taken_for_nothing(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    run = begun(log)
    charge(log, "rationale", None, 10, "call", task="a", moment=START + timedelta(minutes=1))
    assert bill(log, 1.5)(run, END) is None


def test_upkeep_costs_nothing(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    assert bill(log, 1.5)(begun(log, "retention", None), END) == 0
    assert spend(log) == []
