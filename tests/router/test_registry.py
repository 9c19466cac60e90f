import pytest

from proxy.errors import BadInput
from proxy.log import Log
from router.registry import CANARY, LIVE, RETIRED, SHADOW, Watch, candidates, certificate_of, move, newest, register
from tests.router.conftest import TASK, known, now


def test_a_candidate_starts_in_shadow_with_all_it_was_given(log: Log) -> None:
    found = known(log, threshold=0.7, snapshot=12)
    assert (found.stage, found.reason, found.ordinal) == (SHADOW, "registered", 1)
    assert (found.task, found.evaluator, found.threshold, found.margin, found.snapshot) == (
        TASK,
        "label",
        0.7,
        0.05,
        12,
    )
    assert found.card["labels"] == ["billing", "shipping"]
    assert found.created_at.tzinfo is not None


def test_each_candidate_spends_a_smaller_part_of_the_tasks_error_rate(log: Log) -> None:
    shares = [known(log, f"student-{number}", alpha=0.06).alpha for number in (1, 2, 3)]
    assert shares == pytest.approx([0.06 / 2, 0.06 / 6, 0.06 / 12])
    assert sum(shares) < 0.06
    assert known(log, "elsewhere", alpha=0.06, task="another").alpha == pytest.approx(0.03)


def test_a_candidate_that_is_known_is_not_registered_again(log: Log) -> None:
    first = known(log)
    again = {"kind": "student", "evaluator": "label", "threshold": 0.1, "margin": 0.5, "alpha": 0.5, "snapshot": 9}
    assert not register(log, candidate=first.id, task=TASK, bundle="b", card={}, **again)  # type: ignore[arg-type]
    assert candidates(log) == [first]


def test_a_new_candidate_supersedes_those_in_shadow_only(log: Log) -> None:
    move(log, known(log, "live"), LIVE, "for the test")
    known(log, "waiting")
    known(log, "elsewhere", task="another")
    known(log, "fresh")
    stages = {candidate.id: candidate.stage for candidate in candidates(log)}
    assert stages == {"live": LIVE, "waiting": RETIRED, "elsewhere": SHADOW, "fresh": SHADOW}
    assert now(log, "waiting").reason == "superseded by fresh"


def test_a_move_is_appended_and_the_last_one_counts(log: Log) -> None:
    first = known(log)
    assert move(log, first, CANARY, "proved", {"n": 90})
    assert move(log, now(log), LIVE, "went well")
    steps = log.query("SELECT stage_from, stage_to, reason FROM transitions ORDER BY id")
    assert steps == [("", SHADOW, "registered"), (SHADOW, CANARY, "proved"), (CANARY, LIVE, "went well")]
    assert (now(log).stage, now(log).reason) == (LIVE, "went well")
    assert certificate_of(log, first.id) == {"n": 90}


def test_a_move_from_a_stage_that_has_passed_does_nothing(log: Log) -> None:
    stale = known(log)
    assert move(log, stale, RETIRED, "rolled back")
    assert not move(log, stale, CANARY, "too late")
    assert now(log).stage == RETIRED


def test_there_is_no_certificate_before_a_promotion(log: Log) -> None:
    assert certificate_of(log, known(log).id) is None


def test_the_newest_candidate_is_the_last_registered(log: Log) -> None:
    known(log, "zebra")
    known(log, "aardvark")
    assert newest(log, TASK).id == "aardvark"
    assert newest(log, TASK, "zebra").id == "zebra"
    with pytest.raises(BadInput, match="has no candidate 'tiger': it has zebra, aardvark"):
        newest(log, TASK, "tiger")


def test_a_task_without_candidates_says_what_to_do(log: Log) -> None:
    with pytest.raises(BadInput, match="stillroom distill nothing"):
        newest(log, "nothing")


def test_a_watch_sees_every_change(log: Log) -> None:
    watch = Watch(log)
    assert watch.now() == []
    candidate = known(log)
    assert watch.now() == [candidate]
    move(log, candidate, RETIRED, "a test")
    assert [found.stage for found in watch.now()] == [RETIRED]
    assert watch.now() is watch.now()


def test_a_transition_of_before_shares_were_kept_has_the_share_of_then(log: Log) -> None:
    move(log, known(log), CANARY, "proved", {"n": 90}, 0.3)
    log.query("UPDATE transitions SET share = NULL")
    assert now(log).share == 0.1
    assert move(log, now(log), LIVE, "went well")
    log.query("UPDATE transitions SET share = NULL")
    assert now(log).share == 1.0


def test_only_a_canary_is_given_a_share(log: Log) -> None:
    shares = []
    for stage in (CANARY, LIVE, RETIRED):
        assert move(log, now(log) if shares else known(log), stage, "for the test", share=0.3)
        shares.append(now(log).share)
    assert shares == [0.3, 1.0, 0.0]
