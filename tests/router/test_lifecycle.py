from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from proxy.errors import BadInput, Refused
from proxy.ids import ulid
from proxy.log import Log
from router.lifecycle import GUARDED, Tried, advance, failing, next_stage, promote, publish, rollback, route, standing
from router.parity import Parity, parity
from router.policy import Policy, PolicyWatcher, load_policy
from router.registry import CANARY, LIVE, RETIRED, SHADOW, Candidate, candidates, certificate_of, move
from router.settings import RouterSettings
from router.signing import FINE, examine, signed
from tests.router.conftest import TASK, add_rows, insert, judged, known, now
from tests.router.test_policy import soon

SETTINGS = RouterSettings(canary_exchanges=4, max_failures=0.25)
PROVEN, REFUTED, OPEN = (parity(scores, 0.05, 0.05) for scores in ([1.0] * 200, [0.0] * 60, [1.0] * 5))
SERVED = {"student-1": "http://127.0.0.1:1", "student-2": "http://127.0.0.1:2"}
NOTHING = Tried(0, 0)


@pytest.mark.parametrize(
    ("stage", "shadowed", "audited", "tried", "wanted"),
    [
        (SHADOW, OPEN, OPEN, NOTHING, None),
        (SHADOW, PROVEN, OPEN, NOTHING, CANARY),
        (SHADOW, REFUTED, OPEN, NOTHING, RETIRED),
        (CANARY, PROVEN, OPEN, Tried(3, 0), None),
        (CANARY, PROVEN, OPEN, Tried(4, 0), LIVE),
        (CANARY, PROVEN, OPEN, Tried(3, 1), LIVE),
        (CANARY, PROVEN, OPEN, Tried(2, 2), RETIRED),
        (CANARY, PROVEN, OPEN, Tried(0, 3), None),
        (CANARY, PROVEN, REFUTED, Tried(4, 0), RETIRED),
        (CANARY, REFUTED, OPEN, NOTHING, None),
        (LIVE, PROVEN, PROVEN, Tried(99, 0), None),
        (CANARY, PROVEN, OPEN, Tried(0, 10), RETIRED),
        (LIVE, PROVEN, OPEN, Tried(0, 10), RETIRED),
        (LIVE, PROVEN, OPEN, Tried(2, 2), None),
        (LIVE, PROVEN, REFUTED, Tried(99, 0), RETIRED),
    ],
)
def test_the_stage_that_evidence_calls_for(
    stage: str, shadowed: Parity, audited: Parity, tried: Tried, wanted: str | None
) -> None:
    step = next_stage(stage, shadowed, audited, tried, SETTINGS)
    assert (step[0] if step else None) == wanted


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
    move(log, known(log, name), CANARY, "for the test", {"for": "the test"})
    return now(log, name)


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
    assert standing(log, candidate, SETTINGS)["tried"] == {"answered": 0, "failed": 0}
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
    patient = RouterSettings(canary_exchanges=GUARDED + 20)
    insert(log, ["a"] * (GUARDED + 19), served_by=candidate.id)
    assert advance(log, candidate, patient) is None
    insert(log, ["a"], served_by=candidate.id)
    assert f"{GUARDED + 20} of {GUARDED + 20}" in (advance(log, candidate, patient) or "")


@pytest.mark.parametrize(
    ("tried", "most", "wanted"),
    [
        (Tried(0, 0), 0.05, False),
        (Tried(0, 4), 0.05, False),
        (Tried(0, 5), 0.05, True),
        (Tried(190, 10), 0.05, False),
        (Tried(174, 26), 0.05, False),
        (Tried(170, 30), 0.05, True),
        (Tried(200, 0), 0.0, False),
        (Tried(199, 1), 0.0, True),
        (Tried(0, 200), 1.0, False),
    ],
)
def test_the_guardrail_needs_more_failures_than_chance_gives(tried: Tried, most: float, wanted: bool) -> None:
    assert failing(tried, most) is wanted


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
    steps = [promote(log, TASK, SETTINGS)[1] for _ in range(3)]
    assert steps == [CANARY, LIVE, "already live"]
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
    assert promote(log, TASK, SETTINGS)[1] == CANARY
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
    assert route(candidate, SETTINGS, "http://x").share == SETTINGS.canary_share
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


def test_a_proof_with_a_slice_far_behind_moves_nothing_and_says_why(log: Log) -> None:
    candidate = known(log)
    for tenant, verdict, count in (("many", 1.0, 600), ("few", 0.0, 12)):
        exchanges = insert(log, ["a"] * count, tenant=tenant)
        given = {"candidate": candidate.id, "kind": "shadow", "verdict": verdict, "covered": True}
        add_rows(log, "verdicts", [given | {"id": ulid(), "exchange": one} for one in exchanges])
    assert advance(log, candidate, SETTINGS) is None
    assert "held back: 1 of its slices" in str(standing(log, candidate, SETTINGS)["verdict"])
    with pytest.raises(Refused, match=r"held back: .*tenant few"):
        promote(log, TASK, SETTINGS)
    lenient = RouterSettings(slice_floor=0.9)
    assert promote(log, TASK, lenient)[1] == CANARY


def test_what_is_stored_is_signed_by_whoever_promotes(log: Log, tmp_path: Path) -> None:
    sign = partial(signed, key_file=tmp_path / "key")
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    assert advance(log, candidate, SETTINGS, sign)
    assert examine(certificate_of(log, candidate.id) or {}, tmp_path / "key") == FINE
    judged(log, known(log, "student-2"), [1.0] * 300)
    promote(log, TASK, SETTINGS, sign)
    assert examine(certificate_of(log, "student-2") or {}, tmp_path / "key") == FINE
