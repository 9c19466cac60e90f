from dataclasses import replace

import pytest

from distiller.statement import NONE_PASSED, as_data, sections
from proxy.log import Log
from router.ledger import TaskLine
from tests.distiller.statements import HOSTILE, made
from tests.router.conftest import TASK, log

__all__ = ["log"]
NET = 4 * 0.2 - 0.06 - 0.05 - 0.01
FIXED = 24 * 0.08 + 9 / 30  # The training of 9 dollars was before the period.


def test_a_statement_is_the_ledger_of_its_period_with_days_students_and_a_forecast(log: Log) -> None:
    one = made(log)
    assert one.period == "2026-06-01 to 2026-06-30 (UTC)"
    assert (one.report.teacher_usd, one.report.unpriced) == (pytest.approx(2.9), 1)
    assert one.report.avoided_usd == pytest.approx(0.8)  # Four that were served, at the mean of 0.3 and 0.1.
    assert one.report.net_usd == pytest.approx(NET)
    assert (one.report.busy_hours, one.report.idle_hours, one.report.serving_hours) == (0.25, 0.5, 0.75)
    assert [str(day.day) for day in one.days] == ["2026-06-18", "2026-06-19"]
    (student,) = one.students
    assert (student.candidate, student.served, student.fixed_usd) == ("student-1", 4, pytest.approx(FIXED))
    assert student.break_even == pytest.approx(FIXED / ((0.8 - 0.06) / 7))
    left = 10.5
    assert one.forecast.teacher_usd == pytest.approx(2.9 + left * 2.9 / 2)


def test_tables_say_what_is_unknown_and_who_passed(log: Log) -> None:
    one = made(log)
    titles = [section.title for section in sections(one)]
    assert titles == ["Ledger", "Forecast of 2026-06", "Tasks", "Charges", "Students", "Days"]
    summary = dict(sections(one)[0].rows)  # type: ignore[arg-type]
    assert summary["= net saving against the teacher"] == "$0.6800"
    assert summary["net saving against the cheapest hosted model that passes"] == NONE_PASSED
    assert summary["- serving (0.75 h: 0.25 busy, 0.50 idle)"] == "$0.0600"
    line = replace(one.report.tasks[0], rival="rival-1", rival_usd=0.5)
    assert isinstance(line, TaskLine)
    told = replace(one, report=replace(one.report, tasks=(line,), rival_net_usd=None, rival_avoided_usd=0.5))
    shown = dict(sections(told)[0].rows)  # type: ignore[arg-type]
    assert shown["avoided against the cheapest hosted model that passes"] == "$0.5000"
    assert shown["net saving against the cheapest hosted model that passes"] == "unpriced"
    assert all(len(row) == len(section.columns) for section in sections(told) for row in section.rows)


def test_hours_that_cost_nothing_are_told(log: Log) -> None:
    one = made(log)
    assert sections(one)[0].note == ""
    free = [replace(line, usd=0.0) if line.kind == "serving" else line for line in one.report.lines]
    told = replace(one, report=replace(one.report, lines=tuple(free)))
    assert "Hours of serving were charged at $0: set money.engine_hour" in sections(told)[0].note


def test_as_data_it_is_plain(log: Log) -> None:
    data = as_data(made(log))
    assert (data["since"], data["until"], data["made"]) == ("2026-06-01", "2026-07-01", "2026-06-20T12:00:00+00:00")
    assert {line["task"] for line in data["tasks"]} == {TASK, HOSTILE}
    assert data["days"][0]["day"] == "2026-06-18"
