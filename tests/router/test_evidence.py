import re
from datetime import UTC, datetime, timedelta

import pytest

from proxy.log import Log
from router.certificate import certificate
from router.evidence import Pace, audited, evidence, in_words, pace
from router.parity import STEADY, parity
from tests.router.conftest import insert, judged, known


def test_only_covered_verdicts_enter_parity(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    judged(log, candidate, [0.0] * 100, covered=False)
    found = evidence(log, candidate)
    assert (found.parity.n, found.parity.mean, found.parity.proven) == (200, 1.0, True)
    assert found.shadowed == 300
    assert found.coverage == pytest.approx(2 / 3)
    assert found.coverage_low < 2 / 3 < found.coverage_high


def test_failures_are_counted_and_uncovered(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [0.0] * 3, covered=False, error="candidate timed out")
    found = evidence(log, candidate)
    assert (found.failed, found.shadowed, found.parity.n) == (3, 3, 0)


def test_verdicts_count_in_the_order_they_were_reached_at_the_candidates_own_alpha(log: Log) -> None:
    known(log, "first")
    candidate = known(log, "second")
    scores = [1.0] * 150 + [0.0] * 10
    judged(log, candidate, scores[:100], first=100)
    judged(log, candidate, scores[100:])  # Earlier exchanges that reached the log late: the past path must not change.
    assert evidence(log, candidate).parity == parity(scores, 0.05, 0.05 / 6)
    assert parity(scores, 0.05, 0.05 / 6).lower > parity(scores[::-1], 0.05, 0.05 / 6).lower


def test_another_candidates_verdicts_prove_nothing(log: Log) -> None:
    judged(log, known(log, "first"), [1.0] * 200)
    assert evidence(log, known(log, "second")).parity.n == 0


def test_audits_are_judged_apart(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    judged(log, candidate, [0.0] * 40, kind="audit")
    assert audited(log, candidate).parity.refuted
    assert evidence(log, candidate).parity.proven


@pytest.mark.parametrize(
    ("right", "wrong", "unsure", "said"),
    [
        (0, 0, 0, "no covered exchange of 0 compared"),
        (0, 0, 4, "no covered exchange of 4 compared"),
        (200, 0, 50, "certified: .* covers 80% of the task"),
        (10, 0, 10, "more exchanges of this task to prove 0.95"),
        (9, 1, 0, "no number of exchanges proves 0.95"),
        (0, 60, 0, "0.95 is ruled out for this one: retrain on more"),
    ],
)
def test_the_line_for_people_says_where_it_stands(log: Log, right: int, wrong: int, unsure: int, said: str) -> None:
    candidate = known(log)
    for verdict, count, covered in ((1.0, right, True), (0.0, wrong, True), (1.0, unsure, False)):
        if count:
            judged(log, candidate, [verdict] * count, covered=covered)
    assert re.search(said, in_words(candidate, evidence(log, candidate)))


def test_the_exchanges_still_needed_are_of_the_whole_task(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 10)
    judged(log, candidate, [0.0] * 30, covered=False)
    found = evidence(log, candidate)
    assert found.parity.more is not None
    assert f"about {4 * found.parity.more} more exchanges" in in_words(candidate, found)


def test_a_candidate_as_good_as_a_wavering_teacher_is_proved_and_not_taken_back(log: Log) -> None:
    """Both agree with what the teacher said before in nine of ten exchanges, on the same ones or not."""
    candidate = known(log)
    judged(log, candidate, [1.0] * 80 + [0.0] * 10 + [1.0] * 10, yardstick=1.0)
    assert not evidence(log, candidate).parity.proven
    for verdict, yardstick, count in ((1.0, 1.0, 800), (1.0, 0.0, 45), (0.0, 1.0, 35), (0.0, 0.0, 60)):
        judged(log, candidate, [verdict] * count, first=1000, yardstick=yardstick)
    found = evidence(log, candidate).parity
    assert found.measured == 1040
    assert found.ceiling == pytest.approx(1 - 105 / 1040)
    judged(log, candidate, ([1.0] * 9 + [0.0]) * 100, kind="audit")
    assert not audited(log, candidate).parity.refuted
    assert not audited(log, candidate).drift.found
    assert audited(log, candidate).parity.margin == pytest.approx(0.05 + 105 / (1040 + STEADY))
    judged(log, candidate, [1.0, 0.0] * 30, kind="audit")
    assert audited(log, candidate).drift.found
    assert not audited(log, candidate).parity.refuted


@pytest.mark.parametrize(
    ("coming", "said"),
    [
        (Pace(0, 170.0), r"to prove 0.95: 2 days at the present rate of 170 a day"),
        (Pace(0, 1_000.0), r"to prove 0.95: \d hours at the present rate of 1,000 a day"),
        (Pace(100_000, 1.0), "which are there and wait to be compared"),
        (Pace(10, 0.0), "none came in the last seven days"),
    ],
)
def test_how_long_it_takes_at_the_present_rate(log: Log, coming: Pace, said: str) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 10)
    assert re.search(said, in_words(candidate, evidence(log, candidate), coming))


def test_the_pace_counts_what_can_be_compared(log: Log) -> None:
    candidate = known(log)
    assert pace(log, candidate) == Pace(0, 0.0)
    insert(log, ["old"] * 50, ts=datetime.now(UTC) - timedelta(days=9))
    insert(log, ["a"] * 6, ts=datetime.now(UTC) - timedelta(days=3))
    done = insert(log, ["a"] * 3)
    insert(log, ["b"] * 5, served_by=candidate.id)
    insert(log, ["b"] * 5, task="another")
    for exchange in done:
        judged(log, candidate, [1.0], exchange=exchange)
    found = pace(log, candidate)
    assert found.waiting == 56
    assert found.per_day == pytest.approx(3, rel=0.01)


def test_with_yardsticks_the_line_and_the_certificate_say_what_it_is_relative_to(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 300, yardstick=1.0)
    found = evidence(log, candidate)
    assert "relative to the teacher's own 1.000 (asked again 300 times)" in in_words(candidate, found)
    proof = certificate(log, candidate, 0.1)
    assert "at most 5 % of the task less than the teacher, asked again, agrees with itself" in proof["claim"]
    assert (proof["parity"]["measured"], proof["parity"]["ceiling"]) == (300, 1.0)


def test_a_right_answer_replaces_the_comparison_and_its_yardstick(log: Log) -> None:
    candidate = known(log)
    judged(log, candidate, [0.0] * 3, yardstick=0.5, gold="f", candidate_right=1.0, teacher_right=0.0)
    judged(log, candidate, [1.0], first=3, gold="f", candidate_right=0.0, teacher_right=1.0)
    judged(log, candidate, [1.0] * 4, first=4)
    found = evidence(log, candidate).parity
    assert (found.mean, found.measured, found.ceiling) == (7 / 8, 3, 1.0)
    assert log.query("SELECT sum(verdict) FROM verdicts") == [(5.0,)]
