import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.conclusion import DISTILLABLE, MORE, NOT, UNKNOWN
from distiller.forecast import FEWEST, forecast
from distiller.settings import DistillerSettings, Settings
from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log
from router.ledger import charge
from router.settings import MoneySettings, RouterSettings, TaskSettings
from tests.distiller.test_noise import tickets
from tests.distiller.toy_task import toy_log, toy_settings
from tests.logs import migrated
from tests.router.conftest import PATH, TASK, add_rows, insert, spent

SETTINGS = Settings(distiller=DistillerSettings(base="owner/not-here", min_exchanges=100))
START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def fill(log: Log, count: int = 400, answer: Callable[[int, str], str] = lambda number, queue: queue) -> None:
    """Tickets one hour apart, each answered with its queue, or what `answer` makes of it."""
    rows = [
        {
            "id": ulid(), "ts": START + timedelta(hours=hour), "task": TASK, "path": PATH, "served_by": "teacher",
            "status": 200, "partial": False, "finish_reason": "stop", "answer": answer(hour, row.answer),
            "request": json.dumps({"messages": row.messages}), "request_encoding": "utf-8",
        }
        for hour, row in enumerate(tickets(count))
    ]  # fmt: skip
    add_rows(log, "exchanges", rows)


def test_a_task_that_words_decide_is_distillable_and_pays_in_weeks(log: Log) -> None:
    fill(log)
    spent(log, "teacher", 0.5)
    charge(log, "training", 4.0, 2.0, "hour", task=TASK)
    settings = replace(SETTINGS, money=MoneySettings(engine_hour=0.1, training_hour=2.0))
    found = forecast(log, settings, TASK)
    assert (found.conclusion.word, found.data.evaluator, found.data.evaluator_basis) == (
        DISTILLABLE, "label", "chosen from 400 answers",
    )  # fmt: skip
    assert (found.data.fit, found.data.train, found.data.holdout) == (400, 320, 80)
    assert found.data.labels is not None
    assert (found.data.labels.labels, found.data.labels.evenness) == (2, pytest.approx(1))
    assert found.agreement.value == pytest.approx(1, abs=0.02)
    assert found.coverage.value == pytest.approx(1, abs=0.02)
    assert found.proof.value is not None
    assert found.money.per_day.value == pytest.approx(24)
    assert found.money.break_even.value == pytest.approx((2.4 + 4 / 30) / (0.5 * 0.95 * 0.98), rel=0.05)
    assert found.money.weeks.value == pytest.approx(4 / (7 * (24 * 0.5 * 0.95 * 0.98 - 2.4)), rel=0.05)
    assert "owner/not-here is not here yet" in found.base.why


def test_the_log_is_only_read_and_says_the_same_twice(log: Log) -> None:
    fill(log, 150)
    before = log.snapshot()
    assert forecast(log, SETTINGS, TASK) == forecast(log, SETTINGS, TASK)
    assert log.snapshot() == before


def test_an_unknown_task_is_refused(log: Log) -> None:
    fill(log, 10)
    with pytest.raises(BadInput, match="task 'nothing' has no recorded exchange"):
        forecast(log, SETTINGS, "nothing")


def test_too_few_rows_need_more_and_nothing_is_guessed(log: Log) -> None:
    fill(log, FEWEST - 1)
    insert(log, ["x"], "", status=500)
    found = forecast(log, SETTINGS, TASK)
    assert (found.conclusion.word, found.conclusion.more) == (MORE, 53)
    assert (found.agreement.value, found.coverage.value, found.proof.value) == (None, None, None)
    assert found.data.dropped == {"error": 1}
    assert len(found.data.examples["error"]) == 1
    assert (found.money.teacher_usd.value, found.money.break_even.value, found.money.weeks.value) == (None, None, None)


def test_where_nothing_is_fit_there_is_no_evaluator(log: Log) -> None:
    insert(log, ["x", "y"], "", status=500)
    found = forecast(log, SETTINGS, TASK)
    assert (found.conclusion.word, found.data.evaluator, found.data.labels) == (MORE, "", None)


def test_calls_of_tools_are_not_distillable(log: Log) -> None:
    insert(log, [f"x {number}" for number in range(20)], None, tool_calls='[{"function": {"name": "f"}}]')
    assert forecast(log, SETTINGS, TASK).conclusion.word == NOT


def test_free_text_is_not_known_before_training(log: Log) -> None:
    fill(log, 120, lambda number, _: f"An essay of its own kind, number {number}, about {number * 7}.")
    found = forecast(log, SETTINGS, TASK)
    assert found.conclusion.word == UNKNOWN
    assert "(exact) are no choice from a closed set" in found.conclusion.why
    assert found.curve == found.conclusion.why


def test_json_of_closed_leaves_is_stood_in_for_and_open_ones_only_in_part(log: Log) -> None:
    fill(log, 200, lambda hour, queue: json.dumps({"queue": queue, "meta": {"urgent": hour % 2 == 0}}))
    found = forecast(log, SETTINGS, TASK)
    assert found.data.evaluator == "json"
    assert list(found.parts) == ["meta.urgent", "queue"]
    assert found.agreement.value == pytest.approx(1, abs=0.05)
    log.query("DELETE FROM exchanges")
    fill(log, 200, lambda hour, queue: json.dumps({"queue": queue, "order": hour}))
    mixed = forecast(log, SETTINGS, TASK)
    assert (mixed.conclusion.word, mixed.agreement.value) == (UNKNOWN, None)
    assert "hold open values (order)" in mixed.conclusion.why
    assert "queue" in mixed.parts


def test_what_is_declared_of_the_task_counts(log: Log) -> None:
    fill(log, 120)
    declared = {TASK: TaskSettings(evaluator="label", aliases={"billing": "delivery"})}
    found = forecast(log, replace(SETTINGS, router=RouterSettings(tasks=declared)), TASK)
    assert found.data.evaluator_basis == "declared"
    assert found.data.labels is not None
    assert (found.data.labels.labels, found.agreement.value) == (1, 1)


def test_rows_of_one_conversation_leave_nothing_to_judge_by(log: Log) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
    fill(log, 120, lambda number, _: "ab"[number % 2])
    body = json.dumps({"messages": [*turns, {"role": "user", "content": "turn "}]})
    log.query("UPDATE exchanges SET request = replace(?, 'turn ', 'turn ' || id)", [body])
    found = forecast(log, SETTINGS, TASK)
    assert (found.conclusion.word, found.data.holdout) == (UNKNOWN, 0)
    assert "no two sides" in found.conclusion.why


def test_rows_too_long_for_the_base_are_seen(tmp_path: Path) -> None:
    log, settings = toy_log(tmp_path), toy_settings(tmp_path)
    found = forecast(log, settings, TASK)
    assert found.base.tokens is not None
    assert (found.base.tokens.too_long, found.conclusion.word) == (0, MORE)
    short = replace(settings, distiller=replace(settings.distiller, max_tokens=found.base.tokens.prompt.median))
    assert forecast(log, short, TASK).conclusion.word == NOT
