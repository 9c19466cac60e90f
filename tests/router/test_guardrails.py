from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.log import Log
from router.guardrails import Beyond, Tried, beyond, drifted, failing, slow, tried, troubled
from router.registry import LIVE, Candidate, move
from router.settings import RouterSettings
from tests.router.conftest import insert, judged, known, now

SETTINGS = RouterSettings()
FINE = Tried(200, 0)


@pytest.mark.parametrize(
    ("done", "most", "wanted"),
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
def test_more_failures_than_chance_gives(done: Tried, most: float, wanted: bool) -> None:
    assert bool(failing(done, most, LIVE)) is wanted


def test_the_reason_says_how_many_broke_the_format() -> None:
    assert failing(Tried(0, 5, 3), 0.05, LIVE) == (
        "5 of the latest 5 live exchanges failed, 3 of them by breaking the format"
    )
    assert failing(Tried(0, 5), 0.05, LIVE) == "5 of the latest 5 live exchanges failed"


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_the_chance_of_exceedances_is_that_of_all_orders_counted(others: int, n: int, rank: int) -> None:
    rank = min(rank, others)
    counts = [0] * (n + 1)
    for places in combinations(range(others + n), others):  # Where the others stand, the largest first.
        counts[places[rank - 1] - (rank - 1)] += 1
    for above in range(n + 1):
        wanted = sum(counts[above:]) / sum(counts)
        assert Beyond(above, n, rank, others).chance == pytest.approx(wanted)


@given(st.lists(st.integers(0, 5), max_size=60), st.lists(st.integers(0, 5), max_size=60), st.sampled_from([0.01, 0.3]))
def test_never_more_lie_beyond_than_above_the_others_rank(mine: list[int], others: list[int], share: float) -> None:
    found = beyond(mine, others, share)
    assert 0 <= found.beyond <= found.n == len(mine)
    if others:
        assert found.rank <= sum(other >= sorted(others)[-found.rank] for other in others)
    else:
        assert found.chance == 1.0


def test_nothing_is_slow_against_too_few_answers_of_the_teacher() -> None:
    assert slow(beyond([9e9] * 200, [1.0] * 2, 0.05), 2.0) is None
    assert slow(beyond([9e9] * 200, [], 0.05), 2.0) is None
    assert slow(beyond([9e9] * 200, [1.0] * 40, 0.05), 2.0)


def test_equal_lengths_never_drift() -> None:
    same = beyond([7.0] * 200, [7.0] * 200, 0.01)
    assert drifted(same, same) is None


def live(log: Log) -> Candidate:
    move(log, known(log), LIVE, "for the test", {"for": "the test"})
    return now(log)


def test_a_candidate_that_answers_as_fast_and_as_long_is_left_alone(log: Log) -> None:
    insert(log, ["a"] * 100, latency_ms=500.0)
    candidate = live(log)
    judged(log, candidate, [1.0] * 200, answer="billing")
    insert(log, ["a"] * 100, served_by=candidate.id, latency_ms=900.0)
    assert troubled(log, candidate, FINE, SETTINGS) is None


def test_a_slow_candidate_is_told_and_only_where_that_is_asked_for(log: Log) -> None:
    insert(log, ["a"] * 100, latency_ms=500.0)
    candidate = live(log)
    insert(log, ["a"] * 9, latency_ms=9000.0, fallback="unsure")  # Holds the candidate's time too: not the teacher's.
    insert(log, ["a"] * 100, served_by=candidate.id, latency_ms=1001.0)
    assert troubled(log, candidate, FINE, SETTINGS) == (
        "100 of the latest 100 answers took more than 2 times the 95th percentile of the teacher's latest 100"
    )
    assert troubled(log, candidate, FINE, RouterSettings(max_slowdown=0.0)) is None


@pytest.mark.parametrize(("answer", "word"), [("billing, and more of it", "longer"), ("b", "shorter")])
def test_lengths_that_drift_are_told(log: Log, answer: str, word: str) -> None:
    candidate = live(log)
    judged(log, candidate, [1.0] * 200, answer="billing")
    judged(log, candidate, [0.0] * 200, first=200, answer=answer, covered=False)
    insert(log, ["a"] * 100, served_by=candidate.id)
    assert troubled(log, candidate, FINE, SETTINGS) is None
    insert(log, ["a"] * 40, served_by=candidate.id, answer=answer)
    assert troubled(log, candidate, FINE, SETTINGS) == (
        f"the length of answers drifted: 40 of the latest 140 are {word} than 99 % of the 200 that were certified "
        "in shadow"
    )


def test_broken_formats_are_counted_among_failures_and_what_a_client_forbids_is_none(log: Log) -> None:
    candidate = live(log)
    insert(log, ["a"] * 3, fallback="answer breaks the format")
    insert(log, ["a"] * 2, fallback="candidate timed out")
    insert(log, ["a"] * 2, fallback="unsure")
    insert(log, ["a"] * 2, fallback="answer is longer than the client allows")
    insert(log, ["a"] * 4, served_by=candidate.id)
    assert tried(log, candidate, 50) == Tried(4, 5, 3)


def test_an_answer_that_broke_off_is_a_failure_unless_the_client_left_or_the_engine_died(log: Log) -> None:
    candidate = live(log)
    insert(log, ["a"] * 3, served_by=candidate.id, partial=True, error="candidate timed out")
    insert(log, ["a"] * 2, served_by=candidate.id, partial=True, error="candidate unreachable: ClientPayloadError")
    insert(log, ["a"] * 4, served_by=candidate.id, partial=True, error="client hung up")
    insert(log, ["a"] * 5, served_by=candidate.id)
    assert tried(log, candidate, 50) == Tried(9, 3)
