from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.settings import Settings
from distiller.task_money import WINDOW, per_day, prices, teacher_usd, training_usd
from proxy.log import Log
from router.ledger import charge
from router.settings import MoneySettings
from tests.logs import migrated
from tests.router.conftest import TASK, insert, spent

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def test_the_teachers_price_is_the_mean_of_the_priced_and_says_how_many_are_not(log: Log) -> None:
    assert teacher_usd(log, TASK).value is None
    spent(log, "teacher", None)
    unpriced = teacher_usd(log, TASK)
    assert unpriced.value is None
    assert "unpriced: none of 1 exchanges has a price" in unpriced.basis
    spent(log, "teacher", 0.01)
    spent(log, "teacher", 0.03)
    spent(log, "shadow", 5.0)
    spent(log, "teacher", 7.0, task="other")
    found = teacher_usd(log, TASK)
    assert found.value == pytest.approx(0.02)
    assert found.basis == "the ledger: 2 exchanges, 1 more are unpriced"


def test_a_price_of_zero_is_a_price(log: Log) -> None:
    spent(log, "teacher", 0.0)
    assert teacher_usd(log, TASK).value == 0


def test_the_pace_is_that_of_the_newest_weeks_whoever_answered(log: Log) -> None:
    assert per_day(log, TASK).value is None
    for hours in range(0, 49, 6):
        insert(log, ["x"], ts=NOW - timedelta(hours=hours), served_by="teacher" if hours % 12 else "student-1")
    insert(log, ["refused"], ts=NOW, served_by="stillroom")
    assert per_day(log, TASK).value == pytest.approx(4)
    insert(log, ["long ago"] * 50, ts=NOW - timedelta(days=WINDOW + 1))
    assert per_day(log, TASK).value == pytest.approx(4)


def test_less_than_a_day_says_nothing(log: Log) -> None:
    insert(log, ["x"], ts=NOW)
    insert(log, ["y"], ts=NOW + timedelta(hours=23))
    found = per_day(log, TASK)
    assert (found.value, "2 exchanges within less than a day" in found.basis) == (None, True)


def test_a_training_takes_what_earlier_ones_of_the_task_took_else_those_of_others(log: Log) -> None:
    money = MoneySettings(training_hour=2.0)
    assert training_usd(log, TASK, money).value is None
    charge(log, "training", 1.0, 3.0, "hour", task="other")
    assert training_usd(log, TASK, money).value == pytest.approx(6)
    assert "other tasks" in training_usd(log, TASK, money).basis
    charge(log, "training", 1.0, 0.5, "hour", task=TASK)
    found = training_usd(log, TASK, money)
    assert found.value == pytest.approx(1)
    assert "0.50 h by 1 trainings of it" in found.basis


def test_prices_are_what_is_found_and_declared(log: Log) -> None:
    settings = Settings()
    found = prices(teacher_usd(log, TASK), training_usd(log, TASK, settings.money), settings)
    assert (found.teacher_usd, found.training_usd, found.engine_hour) == (None, None, 0)
    assert found.audit_share == settings.router.audit_share
