import re

import pytest

from proxy.log import Log
from router.evidence import audit, evidence, in_words
from router.parity import parity
from tests.router.conftest import judged, known


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
    assert audit(log, candidate).refuted
    assert evidence(log, candidate).parity.proven


@pytest.mark.parametrize(
    ("right", "wrong", "unsure", "said"),
    [
        (0, 0, 0, "no covered exchange of 0 compared"),
        (0, 0, 4, "no covered exchange of 4 compared"),
        (200, 0, 50, "certified: .* covers 80% of the task"),
        (10, 0, 10, "more exchanges of this task to prove 0.95"),
        (9, 1, 0, "no number of exchanges proves 0.95"),
        (0, 60, 0, "0.95 is ruled out for this student"),
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
