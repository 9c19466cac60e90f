import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.runs import job_of
from distiller.schedule_settings import ScheduleSettings, TaskScheduleSettings
from distiller.settings import DistillerSettings
from distiller.wants import AFTER, Fresh, fresh, uncovered, wants
from proxy.log import Log
from router.charges import charge
from router.freezes import freeze, thaw
from router.lifecycle import FELL, REFUTED
from router.registry import CANARY, LIVE, RETIRED, move
from tests.logs import migrated
from tests.router.conftest import TASK, chat, insert, judged, known, now

THEN = datetime(2026, 3, 1, tzinfo=UTC)
DRIFT = ScheduleSettings(drift=True)
CHANGE = ScheduleSettings(teacher_change=True)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def causes(log: Log, schedule: ScheduleSettings = ScheduleSettings(), **distiller: int) -> list[str]:  # noqa: B008
    return [wish.cause for wish in wants(log, schedule, DistillerSettings(**distiller), THEN)]


def until(moment: datetime) -> dict[str, object]:
    return {"data_until": moment.isoformat(), "labels": [], "static": [], "max_tokens": 1}


def test_what_is_fresh_is_what_the_newest_student_never_saw(log: Log) -> None:
    insert(log, [f"{number}" for number in range(30)])
    assert [(one.task, one.count, one.until) for one in fresh(log)] == [(TASK, 30, None)]
    seen = datetime.now(UTC)
    known(log, card=until(seen))
    assert fresh(log) == []
    insert(log, [f"later {number}" for number in range(10)])
    assert [(one.count, one.until) for one in fresh(log)] == [(10, seen)]
    known(log, "rival", kind="hosted", card={"data_until": datetime.now(UTC).isoformat(), "rival": "cheap"})
    assert [one.count for one in fresh(log)] == [10]  # A rival learned from nothing.


def test_a_student_that_was_trained_and_is_no_candidate_has_seen_its_exchanges_too(log: Log) -> None:
    insert(log, [f"{number}" for number in range(30)])
    charge(log, "training", 1.0, 1.0, "hour", task=TASK)  # It failed, so nobody saw anything.
    assert [one.count for one in fresh(log)] == [30]
    charge(log, "training", 1.0, 0.0, "hour", task=TASK, model="student-that-lost")
    assert fresh(log) == []
    insert(log, [f"later {number}" for number in range(10)])
    charge(log, "training", 1.0, 1.0, "hour", task=TASK, model="student-1")
    known(log, "student-1")  # What a candidate has seen is on its card.
    assert [one.count for one in fresh(log)] == [10]


def test_there_is_enough_by_what_is_new_or_by_what_there_has_to_be_at_all() -> None:
    first, later = Fresh(TASK, 30, None), Fresh(TASK, 30, THEN)
    assert (first.enough(10, 30), first.enough(10, 31)) == (True, False)
    assert (later.enough(30, 200), later.enough(31, 200)) == (True, False)


def test_a_frozen_task_wants_nothing(log: Log) -> None:
    insert(log, ["a"] * 3)
    freeze(log, TASK, "audit week")
    assert fresh(log) == []
    assert causes(log, new_exchanges=1, min_exchanges=1) == []
    thaw(log, TASK, "over")
    assert len(causes(log, new_exchanges=1, min_exchanges=1)) == 1


def test_volume_asks_once_for_each_time_so_many_more_have_come(log: Log) -> None:
    insert(log, ["a"] * 19)
    assert causes(log) == []
    assert causes(log, new_exchanges=20, min_exchanges=1) == []
    insert(log, ["b"])
    first = causes(log, new_exchanges=20, min_exchanges=1)
    assert first == ["volume 1 since never"]
    insert(log, ["c"])
    assert causes(log, new_exchanges=20, min_exchanges=1) == first
    insert(log, ["d"] * 19)
    assert causes(log, new_exchanges=20, min_exchanges=1) == ["volume 2 since never"]
    (wish,) = wants(log, ScheduleSettings(), DistillerSettings(new_exchanges=20, min_exchanges=1), THEN)
    assert (wish.job, wish.task, wish.reason, wish.due) == (job_of(TASK), TASK, "40 new exchanges", THEN)


def test_a_task_goes_by_what_is_said_of_it(log: Log) -> None:
    insert(log, ["a"] * 30)
    insert(log, ["b"] * 30, task="other")
    own = ScheduleSettings(tasks={TASK: TaskScheduleSettings(new_exchanges=10)})
    assert [wish.task for wish in wants(log, own, DistillerSettings(min_exchanges=1), THEN)] == [TASK]
    off = ScheduleSettings(tasks={TASK: TaskScheduleSettings(new_exchanges=0)})
    both = DistillerSettings(min_exchanges=1, new_exchanges=10)
    assert [wish.task for wish in wants(log, off, both, THEN)] == ["other"]


@pytest.mark.parametrize("reason", [f"{FELL}0.8 over the last 40 comparisons", f"{REFUTED}on 90 exchanges"])
def test_a_student_that_evidence_took_back_is_replaced_once_there_is_something_to_learn(log: Log, reason: str) -> None:
    insert(log, ["a"] * AFTER)
    student = known(log, card=until(datetime.now(UTC)))
    move(log, student, LIVE, "promoted")
    move(log, now(log), RETIRED, reason)
    assert causes(log, DRIFT) == []
    insert(log, ["b"] * AFTER)
    (cause,) = causes(log, DRIFT)
    ((transition,),) = log.query("SELECT max(id) FROM transitions")
    assert cause == f"drift {transition}"
    assert causes(log) == []  # Nobody asked for that.
    known(log, "student-2", card=until(datetime.now(UTC)))
    assert causes(log, DRIFT) == []


@pytest.mark.parametrize(
    "reason", ["rolled back: wrong on refunds", "superseded by student-2", "9 of 9 exchanges failed"]
)
def test_what_learning_does_not_cure_is_no_drift(log: Log, reason: str) -> None:
    student = known(log, card=until(datetime.now(UTC)))
    move(log, student, LIVE, "promoted")
    move(log, now(log), RETIRED, reason)
    insert(log, ["b"] * AFTER)
    assert causes(log, DRIFT) == []


def test_inputs_drift_where_a_student_is_sure_of_fewer_of_them(log: Log) -> None:
    student = known(log, card=until(datetime.now(UTC)))
    judged(log, student, [1.0] * 200)
    move(log, student, CANARY, "certified", share=0.5)
    student = now(log)
    insert(log, ["sure"] * 2 * AFTER, served_by=student.id)
    assert uncovered(log, student) is None
    insert(log, ["other"] * AFTER, fallback="unsure")
    said = uncovered(log, student)
    assert said is not None
    assert said.startswith("inputs drifted: sure of ")
    assert causes(log, DRIFT) == [f"inputs {student.id}"]


def answered(log: Log, model: str, count: int, **columns: object) -> None:
    insert(log, [model] * count, answered_model=model, **columns)


def test_a_snapshot_that_the_student_never_saw_is_a_change_of_the_teacher(log: Log) -> None:
    answered(log, "gpt-4o-2024-05", 5)
    known(log, card=until(datetime.now(UTC)))
    answered(log, "gpt-4o-2024-05", AFTER)
    answered(log, "gpt-4o-2024-08", AFTER - 1)
    assert causes(log, CHANGE) == []
    answered(log, "gpt-4o-2024-08", 1)
    insert(log, ["a"] * AFTER, answered_model="large", model="another")  # Nobody learned from who was asked for this.
    (wish,) = wants(log, CHANGE, DistillerSettings(), THEN)
    assert wish.cause == "teacher  gpt-4o-2024-08"
    assert wish.reason == f"the teacher changed: gpt-4o-2024-08 gave {AFTER} answers to gpt-4o"
    known(log, "student-2", card=until(datetime.now(UTC)))
    assert causes(log, CHANGE) == []


def test_deployments_that_take_turns_are_no_change(log: Log) -> None:
    for model in ("one", "two", "one", "two"):
        answered(log, model, 5)
    known(log, card=until(datetime.now(UTC)))
    answered(log, "two", AFTER)
    assert causes(log, CHANGE) == []


def test_new_instructions_are_a_task_of_their_own(log: Log) -> None:
    def asked(rules: str) -> str:
        messages = [{"role": "system", "content": rules}, *chat("where is my parcel")[1:]]
        return json.dumps({"model": "gpt-4o", "messages": messages})

    rules = "You sort messages of customers into queues. Answer with the name of one queue and with nothing else."
    insert(log, ["a"] * 5, request=asked(rules), ts=datetime.now(UTC) - timedelta(hours=1))
    student = known(log, card=until(datetime.now(UTC) - timedelta(minutes=1)))
    move(log, student, LIVE, "promoted")
    insert(log, ["b"] * AFTER, request=asked(f"{rules} Be brief."), task="triage-2")
    (wish,) = wants(log, CHANGE, DistillerSettings(), THEN)
    assert (wish.task, wish.job) == ("triage-2", job_of("triage-2"))
    assert wish.cause.startswith(f"instructions {student.id} ")
