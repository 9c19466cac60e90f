import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.errors import BadInput, Refused
from proxy.ids import ulid
from proxy.log import Log
from router import lifecycle
from router.evidence import audited
from router.freezes import freeze
from router.guardrails import GUARDED, Tried
from router.lifecycle import Step, advance, following, promote, publish, rollback, route, standing
from router.parity import Parity, parity
from router.policy import Policy, PolicyWatcher, load_policy
from router.registry import CANARY, LIVE, RETIRED, SHADOW, Candidate, candidates, certificate_of, move
from router.settings import RouterSettings
from router.signing import FINE, examine, signed
from tests.logs import migrated
from tests.router.conftest import TASK, insert, judged, known, now
from tests.router.test_policy import soon

SETTINGS = RouterSettings(canary_shares=(0.1,), canary_exchanges=4, max_failures=0.25, cooldown_hours=0.0)
RAMP = RouterSettings(canary_exchanges=4)
PROVEN, REFUTED, OPEN = (parity(scores, 0.05, 0.05) for scores in ([1.0] * 200, [0.0] * 60, [1.0] * 5))
SERVED = {"student-1": "http://127.0.0.1:1", "student-2": "http://127.0.0.1:2"}
NOTHING = Tried(0, 0)


@pytest.mark.parametrize(("shadowed", "wanted"), [(OPEN, None), (PROVEN, CANARY), (REFUTED, RETIRED)])
def test_the_stage_that_a_proof_calls_for(shadowed: Parity, wanted: str | None) -> None:
    step = lifecycle.from_shadow(shadowed, SETTINGS)
    assert (step.stage if step else None) == wanted


@pytest.mark.parametrize(
    ("stage", "audited", "tried", "wanted"),
    [
        (CANARY, OPEN, NOTHING, None),
        (CANARY, OPEN, Tried(3, 0), None),
        (CANARY, OPEN, Tried(4, 0), LIVE),
        (CANARY, OPEN, Tried(3, 1), LIVE),
        (CANARY, OPEN, Tried(2, 2), RETIRED),
        (CANARY, OPEN, Tried(0, 3), None),
        (CANARY, REFUTED, Tried(4, 0), RETIRED),
        (LIVE, PROVEN, Tried(99, 0), None),
        (LIVE, OPEN, Tried(2, 2), None),
        (LIVE, REFUTED, Tried(99, 0), RETIRED),
    ],
)
def test_the_stage_that_traffic_calls_for(stage: str, audited: Parity, tried: Tried, wanted: str | None) -> None:
    step = lifecycle.from_traffic(stage, 0.1, audited, tried, SETTINGS)
    assert (step.stage if step else None) == wanted


def test_a_ramp_takes_one_step_after_the_other() -> None:
    steps, at = [], Step(SHADOW, 0.0, "")
    while at.stage != LIVE:
        at = following(at.stage, at.share, "", RAMP)
        steps.append((at.stage, at.share))
    assert steps == [(CANARY, 0.01), (CANARY, 0.05), (CANARY, 0.25), (LIVE, 1.0)]


def test_a_ramp_goes_on_from_its_share_when_the_steps_were_changed() -> None:
    assert following(CANARY, 0.1, "", RAMP).share == 0.25
    assert following(CANARY, 0.5, "", RAMP).stage == LIVE
    assert following(RETIRED, 0.0, "", RAMP).share == 0.01


def test_a_proof_makes_a_canary_with_a_certificate(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    assert "parity proved on 200 exchanges" in (advance(log, candidate, SETTINGS) or "")
    assert now(log).stage == CANARY
    proof = certificate_of(log, candidate.id)
    assert proof is not None
    assert (proof["parity"]["n"], proof["parity"]["proven"]) == (200, True)


def test_a_refutation_retires_without_a_certificate(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [0.0] * 60)
    advance(log, candidate, SETTINGS)
    assert (now(log).stage, certificate_of(log, candidate.id)) == (RETIRED, None)
    assert advance(log, now(log), SETTINGS) is None


def test_unsure_answers_however_right_move_nothing(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 300, covered=False)
    assert advance(log, candidate, SETTINGS) is None


def test_a_stale_look_moves_nothing(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    move(log, candidate, RETIRED, "rolled back")
    assert advance(log, candidate, SETTINGS) is None
    assert now(log).stage == RETIRED


def test_a_second_candidate_needs_more_for_its_smaller_share(log: Log) -> None:
    first = known(log)
    judged(log, first, [1.0] * 115)
    assert advance(log, first, SETTINGS)
    second = known(log, "student-2")
    judged(log, second, [1.0] * 115)
    assert second.alpha == pytest.approx(0.05 / 6)
    assert advance(log, second, SETTINGS) is None
    judged(log, second, [1.0] * 50, first=115)
    assert advance(log, second, SETTINGS)
    assert (now(log).stage, now(log).reason) == (RETIRED, "superseded by student-2")


def canary(log: Log, name: str = "student-1") -> Candidate:
    move(log, known(log, name), CANARY, "for the test", {"for": "the test"}, 0.1)
    return now(log, name)


def test_each_step_of_the_ramp_is_a_transition_with_its_share_and_reason(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    for _ in range(4):
        assert advance(log, now(log), RAMP)
        assert advance(log, now(log), RAMP) is None  # The next step wants exchanges of its own.
        insert(log, ["a"] * 4, served_by=candidate.id)
    rows = log.query("SELECT stage_from, stage_to, share, reason FROM transitions ORDER BY id")
    assert [row[:3] for row in rows] == [
        ("", SHADOW, 0.0), (SHADOW, CANARY, 0.01), (CANARY, CANARY, 0.05), (CANARY, CANARY, 0.25), (CANARY, LIVE, 1.0),
    ]  # fmt: skip
    assert rows[2][3] == "4 of 4 canary exchanges answered at 1 %"
    assert log.query("SELECT count(certificate) FROM transitions") == [(1,)]


def test_two_that_step_at_once_take_one_step(log: Log) -> None:
    candidate = canary(log)
    assert move(log, candidate, CANARY, "first", share=0.25)
    assert not move(log, candidate, CANARY, "second", share=0.25)
    assert now(log).reason == "first"


def test_a_canary_that_answers_goes_live(log: Log) -> None:
    candidate = canary(log)
    insert(log, ["a"] * 4, served_by=candidate.id)
    assert "4 of 4" in (advance(log, candidate, SETTINGS) or "")
    assert now(log).stage == LIVE


def test_a_canary_that_fails_is_retired(log: Log) -> None:
    candidate = canary(log)
    insert(log, ["a"] * 2, served_by=candidate.id)
    insert(log, ["a"] * 2, fallback="candidate timed out")
    advance(log, candidate, SETTINGS)
    assert (now(log).stage, now(log).reason) == (RETIRED, "2 of the latest 4 canary exchanges failed")


def test_being_unsure_or_before_the_canary_or_elsewhere_is_no_failure(log: Log) -> None:
    candidate = canary(log)
    insert(log, ["a"] * 9, fallback="unsure")
    insert(log, ["a"] * 9, fallback="candidate unreachable: ServerDisconnectedError")
    insert(log, ["a"] * 9, fallback="candidate timed out", ts=datetime.now(UTC) - timedelta(hours=1))
    insert(log, ["a"] * 9, fallback="candidate timed out", task="another")
    assert standing(log, candidate, SETTINGS)["tried"] == {"answered": 0, "failed": 0, "malformed": 0}
    assert advance(log, candidate, SETTINGS) is None


def live(log: Log) -> Candidate:
    move(log, canary(log), LIVE, "for the test")
    return now(log)


def test_a_live_candidate_that_starts_to_fail_is_retired(log: Log) -> None:
    candidate = live(log)
    insert(log, ["a"] * (GUARDED + 50), served_by=candidate.id)
    insert(log, ["a"] * 60, fallback="candidate timed out")
    assert advance(log, candidate, SETTINGS) is None  # 60 of 200 at 25 % may be chance.
    insert(log, ["a"] * 60, fallback="candidate timed out")
    advance(log, candidate, SETTINGS)
    assert (now(log).stage, now(log).reason) == (RETIRED, "120 of the latest 200 live exchanges failed")


def test_a_live_candidate_whose_engine_is_gone_stays_live(log: Log) -> None:
    candidate = live(log)
    insert(log, ["a"] * 50, fallback="candidate unreachable: ClientConnectorError")
    assert advance(log, candidate, SETTINGS) is None


def test_a_canary_may_be_longer_than_the_guardrail_looks_back(log: Log) -> None:
    candidate = canary(log)
    patient = RouterSettings(canary_shares=(0.1,), canary_exchanges=GUARDED + 20)
    insert(log, ["a"] * (GUARDED + 19), served_by=candidate.id)
    assert advance(log, candidate, patient) is None
    insert(log, ["a"], served_by=candidate.id)
    assert f"{GUARDED + 20} of {GUARDED + 20}" in (advance(log, candidate, patient) or "")


def test_audits_that_refute_retire_a_live_candidate(log: Log) -> None:
    candidate = canary(log)
    move(log, candidate, LIVE, "for the test")
    judged(log, candidate, [1.0] * 200)
    judged(log, candidate, [0.0] * 60, kind="audit")
    assert "audit refuted" in (advance(log, now(log), SETTINGS) or "")
    assert now(log).stage == RETIRED


def test_nothing_is_promoted_without_a_certificate(log: Log) -> None:
    judged(log, known(log), [1.0] * 10)
    with pytest.raises(Refused, match=r"no promotion without a certificate: not yet: .* more exchanges"):
        promote(log, TASK, SETTINGS)
    assert now(log).stage == SHADOW


def test_an_operator_promotes_what_is_proved_step_by_step(log: Log) -> None:
    judged(log, known(log), [1.0] * 200)
    steps = [promote(log, TASK, RAMP) for _ in range(5)]
    assert [(step.stage, step.share) for step in steps] == [
        (CANARY, 0.01), (CANARY, 0.05), (CANARY, 0.25), (LIVE, 1.0), (LIVE, 1.0),
    ]  # fmt: skip
    assert (now(log).stage, now(log).reason) == (LIVE, "promoted by the operator")
    assert certificate_of(log, "student-1")


def test_a_promotion_retires_what_answered_before(log: Log) -> None:
    canary(log)
    judged(log, known(log, "student-2"), [1.0] * 300)
    promote(log, TASK, SETTINGS)
    assert [one.stage for one in candidates(log)] == [RETIRED, CANARY]


def test_what_was_rolled_back_may_be_promoted_again_but_not_what_audits_refuted(log: Log) -> None:
    candidate = canary(log)
    rollback(log, TASK, "by mistake")
    assert promote(log, TASK, SETTINGS).stage == CANARY
    judged(log, candidate, [0.0] * 60, kind="audit")
    advance(log, now(log), SETTINGS)
    with pytest.raises(Refused, match="audits refuted student-1"):
        promote(log, TASK, SETTINGS)
    assert now(log).stage == RETIRED


def test_a_rollback_retires_with_its_reason_and_a_second_moves_nothing(log: Log) -> None:
    canary(log)
    assert [one.id for one in rollback(log, TASK, "wrong on refunds")] == ["student-1"]
    assert (now(log).stage, now(log).reason) == (RETIRED, "rolled back: wrong on refunds")
    assert rollback(log, TASK, "again") == []
    with pytest.raises(BadInput, match="no candidate"):
        rollback(log, "nothing", "x")


async def test_a_rollback_takes_the_route_away_and_workers_see_it(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "state" / "policy.json"
    canary(log)
    policy = publish(log, SETTINGS, SERVED, path)
    watcher = PolicyWatcher(path)
    assert watcher.policy == policy
    assert list(policy.routes) == [TASK]
    async with watcher.watching():
        rollback(log, TASK, "wrong on refunds")
        publish(log, SETTINGS, SERVED, path)
        assert load_policy(path) == Policy()
        await soon(watcher, Policy())


def test_only_served_canary_and_live_candidates_get_a_route(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    candidate = canary(log)
    known(log, "student-2", task="another")  # Served, but in shadow.
    assert publish(log, SETTINGS, {}, path) == Policy()
    routes = publish(log, SETTINGS, SERVED, path).routes
    assert routes == {TASK: route(candidate, SETTINGS, SERVED["student-1"])}
    assert load_policy(path).routes == routes
    assert publish(log, SETTINGS, {"student-2": "http://127.0.0.1:2"}, path) == Policy()


def test_a_canary_gets_its_share_and_a_live_candidate_all(log: Log) -> None:
    candidate = canary(log)
    assert route(candidate, SETTINGS, "http://x").share == 0.1
    assert route(candidate, SETTINGS, "http://x").held_back == SETTINGS.holdback_share
    move(log, candidate, LIVE, "for the test")
    asked = route(now(log), SETTINGS, "http://x")
    assert (asked.share, asked.stage, asked.threshold, asked.max_tokens) == (1.0, LIVE, 0.5, 16)
    assert asked.labels == ("billing", "shipping")


def test_standing_says_where_a_candidate_is_and_why(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    shown = standing(log, candidate, SETTINGS)
    assert (shown["task"], shown["stage"], shown["reason"]) == (TASK, SHADOW, "registered")
    assert str(shown["verdict"]).startswith("certified: ")


STEPS = {
    ("", SHADOW), (SHADOW, CANARY), (SHADOW, RETIRED), (CANARY, CANARY), (CANARY, LIVE), (CANARY, RETIRED),
    (LIVE, RETIRED), (RETIRED, CANARY),
}  # fmt: skip
EVENTS = st.sampled_from(
    ["agree", "differ", "audit", "refute", "serve", "fail", "advance", "advance", "promote", "roll", "freeze", "next"]
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    log = migrated(tmp_path_factory.mktemp("shared"))
    yield log
    log.close()


def happens(log: Log, task: str, event: str) -> None:
    newest = candidates(log, task)[-1]
    verdicts = {
        "agree": (1.0, "shadow"),
        "differ": (0.0, "shadow"),
        "audit": (1.0, "audit"),
        "refute": (0.0, "holdback"),
    }
    if event in verdicts:
        verdict, kind = verdicts[event]
        judged(log, newest, [verdict] * 130, kind=kind)
    elif event == "serve":
        insert(log, ["a"] * 4, task=task, served_by=newest.id)
    elif event == "fail":
        insert(log, ["a"] * 4, task=task, fallback="candidate timed out")
    elif event == "advance":
        for candidate in candidates(log, task):
            advance(log, candidate, RAMP)
    elif event == "roll":
        rollback(log, task, "by hand")
    elif event == "freeze":
        freeze(log, task, "by hand")
    elif event == "next":
        known(log, ulid(), task=task)
    else:
        with suppress(Refused):
            promote(log, task, RAMP)


@settings(max_examples=15, deadline=None)
@example(
    events=["agree", "advance", "serve", "advance", "serve", "freeze", "advance", "roll", "next", "agree", "promote"]
)
@example(
    events=["agree", *["promote"] * 4, "next", "agree", "agree", "advance", "refute", "advance", "promote", "advance"]
)
@given(events=st.lists(EVENTS, min_size=4, max_size=12))
def test_whatever_happens_nobody_answers_without_a_certificate_and_steps_keep_their_order(
    shared: Log, events: list[str]
) -> None:
    task = f"task-{ulid()}"
    known(shared, ulid(), task=task)
    for event in events:
        happens(shared, task, event)
        assert sum(one.stage in (CANARY, LIVE) for one in candidates(shared, task)) <= 1
    at: dict[str, tuple[str, float]] = {}
    certified = set()
    rows = (
        "SELECT candidate, stage_from, stage_to, share, certificate, reason FROM transitions WHERE task = ? ORDER BY id"
    )
    for candidate, before, after, share, proof, reason in shared.query(rows, [task]):
        assert before == at.get(candidate, ("", 0.0))[0]
        assert (before, after) in STEPS
        assert reason
        certified |= {candidate} if proof and json.loads(proof)["parity"]["proven"] else set()
        assert after not in (CANARY, LIVE) or candidate in certified
        assert before != RETIRED or after == RETIRED or reason == "promoted by the operator"
        assert after not in (CANARY, LIVE) or share > at[candidate][1]
        at[candidate] = after, share


def test_a_fall_after_many_good_audits_retires_before_the_whole_history_would(log: Log) -> None:
    candidate = canary(log)
    judged(log, candidate, [1.0] * 400, kind="audit")
    assert advance(log, candidate, SETTINGS) is None
    judged(log, candidate, [1.0, 1.0, 0.0] * 25, first=400, kind="audit")
    assert not audited(log, candidate).parity.refuted
    assert "agreement fell to 0.6" in (advance(log, candidate, SETTINGS) or "")
    assert now(log).stage == RETIRED


def test_what_is_stored_is_signed_by_whoever_promotes(log: Log, tmp_path: Path) -> None:
    sign = partial(signed, key_file=tmp_path / "key")
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    assert advance(log, candidate, SETTINGS, sign)
    assert examine(certificate_of(log, candidate.id) or {}, tmp_path / "key") == FINE
    judged(log, known(log, "student-2"), [1.0] * 300)
    promote(log, TASK, SETTINGS, sign)
    assert examine(certificate_of(log, "student-2") or {}, tmp_path / "key") == FINE
