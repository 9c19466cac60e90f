from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.dashboard.capture import Capture
from distiller.dashboard.needs import BAD, INFO, WARN, Need, from_keys, from_log, from_process, ordered
from distiller.runs import FAILED, OK, End, Wish, record
from distiller.settings import Settings
from proxy.log import Log
from proxy.settings import SunsetSettings, TeacherSettings
from router.registry import CANARY, RETIRED, SUPERSEDED, move
from router.settings import RouterSettings, TaskSettings
from tests.router.conftest import TASK, insert, judged, known, log, now, spent

__all__ = ["log"]  # The fixture.
NOW = datetime.now(UTC)


def told(log: Log, settings: Settings | None = None) -> list[Need]:
    return from_log(log, settings or Settings(), datetime.now(UTC) + timedelta(minutes=1))


def test_where_all_is_well_nobody_is_needed(log: Log) -> None:
    ids = insert(log, ["a"])
    spent(log, "teacher", 0.5, ids[0])
    assert told(log) == []
    assert from_process({"degraded": []}, Capture(5, 5, 0, 0, ())) == from_process({"degraded": []}, None) == []
    assert from_keys({"a": None, "b": 0.79}) == []


def test_what_has_no_price_is_told(log: Log) -> None:
    spent(log, "teacher", None, "x")
    (need,) = told(log)
    assert (need.level, need.what) == (WARN, "1 charge has no price since yesterday: (no model).")


def test_a_task_that_went_back_is_told_until_another_candidate_answers(log: Log) -> None:
    move(log, known(log), CANARY, "certified", None, 0.01)
    assert told(log) == []
    move(log, now(log), RETIRED, "audits: it is worse")
    (need,) = told(log)
    assert (need.level, need.link) == (WARN, "/ui/tasks/triage")
    assert need.what == "triage went back to the teacher: audits: it is worse."
    move(log, known(log, "student-2"), CANARY, "certified", None, 0.01)
    assert told(log) == []
    move(log, now(log, "student-2"), RETIRED, f"{SUPERSEDED}student-3")
    assert [each.what for each in told(log)] == [need.what]


def test_a_job_is_told_while_its_last_run_failed(log: Log) -> None:
    record(log, Wish("prices", "prices", "1", "its time", NOW), End(FAILED, "no network"), NOW)
    (need,) = told(log)
    assert (need.what, need.link) == ("The last run of prices failed: no network", "/ui/schedule")
    record(log, Wish("prices", "prices", "2", "its time", NOW), End(OK, ""), NOW)
    assert told(log) == []


def test_the_end_of_a_model_is_told_when_it_is_near(log: Log) -> None:
    def soon(days: int, successor: str) -> list[Need]:
        sunset = SunsetSettings("gpt-4o", (NOW + timedelta(days=days)).date(), successor)
        return told(log, Settings(teacher=TeacherSettings(sunsets=(sunset,))))

    assert soon(100, "gpt-5") == []
    assert [need.level for need in soon(10, "gpt-5")] == [WARN]
    (need,) = soon(10, "")
    assert need.level == BAD
    assert "no successor is named" in need.what


def test_a_large_task_without_a_student_is_told(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distiller.dashboard.needs.WORTH", 3)
    settings = Settings()
    insert(log, ["a", "b", "c"])
    assert told(log, settings) == []  # distiller.min_exchanges is more.
    insert(log, [str(number) for number in range(200)])
    (need,) = told(log, settings)
    assert (need.level, need.link) == (INFO, "/ui/tasks/triage")
    known(log)
    assert told(log, settings) == []


def test_a_proof_that_waits_for_an_operator_is_told(log: Log) -> None:
    settings = Settings(router=RouterSettings(tasks={TASK: TaskSettings(promote="manual")}))
    one = known(log)
    assert told(log, settings) == []
    judged(log, one, [1.0] * 200)
    assert [need.what for need in told(log, settings)] == ["student-1 has passed and waits to be promoted."]
    assert told(log) == []


def test_a_learning_budget_is_told_when_it_is_nearly_used_up(log: Log) -> None:
    settings = Settings(router=RouterSettings(tasks={TASK: TaskSettings(learning_budget=10.0)}))
    spent(log, "judge", 7.9)
    assert told(log, settings) == []
    spent(log, "judge", 0.1)
    assert [(need.level, need.what) for need in told(log, settings)] == [
        (INFO, "80% of the learning budget of triage is used this month.")
    ]
    spent(log, "judge", 5.0)
    assert [need.level for need in told(log, settings)] == [WARN]


def test_what_the_process_tells_comes_in_words() -> None:
    counted = Capture(10, 7, 1, 2, ("disk", "spool"))
    found = from_process({"degraded": ["disk", "engine", "log", "round", "spool"]}, counted)
    assert found[0].what == "2 exchanges could not be kept (disk, spool)."
    assert len(found) == 6
    assert {need.level for need in found} == {BAD}


def test_budgets_are_told_before_and_when_they_are_used_up() -> None:
    found = from_keys({"bot": 0.8, "other": 1.0})
    assert [(need.level, need.what[:30]) for need in found] == [
        (WARN, "The key bot has used 80% of it"), (BAD, "The key other has used 100% of"),
    ]  # fmt: skip


def test_the_most_urgent_comes_first() -> None:
    one, two, three = Need(INFO, "a"), Need(BAD, "b"), Need(WARN, "c")
    assert ordered([one], [two, three]) == [two, three, one]


def test_an_empty_home_is_no_error(tmp_path: Path) -> None:
    assert ordered() == []
