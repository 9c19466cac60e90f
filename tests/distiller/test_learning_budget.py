from decimal import Decimal
from pathlib import Path

import pytest

from distiller.learning_budget import learning_of, training_paid
from distiller.settings import DistillerSettings, Settings
from proxy.errors import Refused
from proxy.log import Log
from router.charges import charge
from router.settings import MoneySettings, RouterSettings, TaskSettings
from tests.router.conftest import TASK, log

__all__ = ["log"]


def settings(home: Path, budget: float = 2.0, hours: float = 0.5) -> Settings:
    return Settings(
        home=str(home), router=RouterSettings(tasks={TASK: TaskSettings(learning_budget=budget)}),
        money=MoneySettings(training_hour=1.0), distiller=DistillerSettings(hours=hours),
    )  # fmt: skip


def reserved(log: Log, home: Path) -> Decimal | None:
    account = learning_of(log, settings(home)).account(TASK)
    return None if account is None else account.reserved


def test_a_first_training_sets_aside_the_hours_it_may_take_and_later_ones_what_it_took(
    log: Log, tmp_path: Path
) -> None:
    with training_paid(log, settings(tmp_path), TASK):
        assert reserved(log, tmp_path) == Decimal("0.5")
    charge(log, "training", 0.75, 0.75, "hour", TASK, "student-1")
    charge(log, "training", 0.01, 0.01, "hour", TASK)  # One that was refused.
    with training_paid(log, settings(tmp_path), TASK):
        assert reserved(log, tmp_path) == Decimal("0.75")
    assert reserved(log, tmp_path) == 0


def test_a_training_without_room_is_refused_with_what_is_left(log: Log, tmp_path: Path) -> None:
    charge(log, "training", 1.5, 1.5, "hour", TASK, "student-1")
    with (
        pytest.raises(Refused, match=r"of its learning budget of \$2\.00 \$0\.5000 are left, .* takes \$1\.5000"),
        training_paid(log, settings(tmp_path), TASK),
    ):
        raise AssertionError("it was let through")
    assert reserved(log, tmp_path) == 0


def test_where_nothing_is_left_not_even_a_first_one_of_unknown_length_begins(log: Log, tmp_path: Path) -> None:
    with training_paid(log, settings(tmp_path, hours=0.0), TASK):
        assert reserved(log, tmp_path) == 2
        with pytest.raises(Refused), training_paid(log, settings(tmp_path, hours=0.0), TASK):
            pass
    charge(log, "judge", 2.0, 1.0, "question", TASK)
    with pytest.raises(Refused), training_paid(log, settings(tmp_path, hours=0.0), TASK):
        pass


def test_without_a_budget_nothing_is_set_aside(log: Log, tmp_path: Path) -> None:
    with training_paid(log, settings(tmp_path, budget=0.0), TASK):
        assert log.query("SELECT count(*) FROM reservations") == [(0,)]
