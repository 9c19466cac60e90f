from datetime import UTC, datetime, timedelta

import pytest

from proxy.errors import BadInput, Refused
from proxy.log import Log
from router.freezes import cooling, freeze, frozen, held, thaw
from router.lifecycle import advance, promote, rollback, standing
from router.registry import CANARY, LIVE, RETIRED, SHADOW, move
from router.settings import RouterSettings, TaskSettings
from tests.router.conftest import TASK, insert, judged, known, now

SETTINGS = RouterSettings(canary_exchanges=4)
MANUAL = RouterSettings(canary_exchanges=4, tasks={TASK: TaskSettings(promote="manual")})
PROOF = [1.0] * 400


def test_a_freeze_is_appended_and_the_last_one_counts(log: Log) -> None:
    known(log)
    for reason in ("audit week", "still"):
        freeze(log, TASK, reason)
    assert {task: ice.reason for task, ice in frozen(log).items()} == {TASK: "still"}
    thaw(log, TASK, "done")
    assert frozen(log) == {}
    rows = log.query("SELECT frozen, reason FROM freezes ORDER BY id")
    assert rows == [(True, "audit week"), (True, "still"), (False, "done")]


def test_only_what_there_is_can_be_frozen_or_thawed(log: Log) -> None:
    with pytest.raises(BadInput, match="no task 'nothing'"):
        freeze(log, "nothing", "x")
    insert(log, ["a"])
    freeze(log, TASK, "a task without a candidate")
    thaw(log, TASK, "x")
    with pytest.raises(BadInput, match="not frozen"):
        thaw(log, TASK, "x")


def test_a_frozen_task_moves_down_but_not_up(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, PROOF)
    freeze(log, TASK, "audit week")
    assert advance(log, candidate, SETTINGS) is None
    with pytest.raises(Refused, match=r"frozen \(audit week\): end that first"):
        promote(log, TASK, SETTINGS)
    assert "proved; frozen since" in str(standing(log, candidate, SETTINGS)["next"])
    thaw(log, TASK, "over")
    assert promote(log, TASK, SETTINGS).stage == CANARY
    freeze(log, TASK, "again")
    insert(log, ["a"] * 4, served_by=candidate.id)
    assert advance(log, now(log), SETTINGS) is None
    judged(log, candidate, [0.0] * 60, kind="audit")
    assert "audit refuted" in (advance(log, now(log), SETTINGS) or "")


def test_a_frozen_task_can_be_rolled_back(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, PROOF)
    promote(log, TASK, SETTINGS)
    freeze(log, TASK, "audit week")
    assert [one.id for one in rollback(log, TASK, "wrong")] == [candidate.id]


def test_a_proof_waits_for_its_operator_where_promotion_is_manual(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, PROOF)
    assert advance(log, candidate, MANUAL) is None
    assert standing(log, candidate, MANUAL)["next"] == f"proved; waits for `stillroom promote {TASK}`"
    promote(log, TASK, MANUAL)
    insert(log, ["a"] * 4, served_by=candidate.id)
    assert advance(log, now(log), MANUAL) is None
    assert standing(log, now(log), MANUAL)["next"] == (
        f"4 of 4 tries at 1 % of conversations; waits for `stillroom promote {TASK}`"
    )
    insert(log, ["a"] * 9, fallback="candidate timed out")
    assert "failed" in (advance(log, now(log), MANUAL) or "")
    assert now(log).stage == RETIRED


def test_after_a_candidate_was_taken_back_no_other_is_promoted_by_itself_for_a_while(log: Log) -> None:
    judged(log, known(log), PROOF)
    promote(log, TASK, SETTINGS)
    rollback(log, TASK, "wrong")
    later = known(log, "student-2")
    judged(log, later, PROOF)
    assert advance(log, later, SETTINGS) is None
    assert "proved; cools down until" in str(standing(log, later, SETTINGS)["next"])
    assert held(log, known(log, "elsewhere", task="another"), SETTINGS) is None
    promote(log, TASK, SETTINGS)  # An operator may.
    insert(log, ["a"] * 4, served_by=later.id)
    assert advance(log, now(log, later.id), SETTINGS)  # And then it goes on.
    assert now(log, later.id).share == 0.05


def test_a_cool_down_ends(log: Log) -> None:
    judged(log, known(log), PROOF)
    promote(log, TASK, SETTINGS)
    rollback(log, TASK, "wrong")
    until = cooling(log, TASK, 24.0)
    assert until is not None
    assert timedelta(hours=23) < until - datetime.now(UTC) < timedelta(hours=25)
    assert cooling(log, TASK, 0.0) is None
    log.query("UPDATE transitions SET ts = ts - INTERVAL 25 HOUR")
    assert cooling(log, TASK, 24.0) is None


def test_neither_a_successor_nor_a_refutation_in_shadow_starts_a_cool_down(log: Log) -> None:
    move(log, known(log), LIVE, "for the test")
    judged(log, known(log, "student-2"), PROOF)
    promote(log, TASK, SETTINGS)
    assert now(log).stage == RETIRED
    third = known(log, "student-3")
    judged(log, third, [0.0] * 100)
    advance(log, third, SETTINGS)
    assert (now(log, "student-3").stage, third.stage) == (RETIRED, SHADOW)
    assert cooling(log, TASK, 24.0) is None
