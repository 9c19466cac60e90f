import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.log import Log
from router.evaluators import JUDGE
from router.judging import UNREADABLE
from router.planted import plant
from router.similarity import NEWEST, Alike, alike, similarity
from tests.router.conftest import chat, insert, judged, known


@given(st.text(), st.text())
def test_it_is_a_share_that_has_no_direction_and_is_1_for_the_same(one: str, other: str) -> None:
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    assert similarity(one, one) == pytest.approx(1)
    assert similarity(one, f" {one}\n") == pytest.approx(1)


def test_nothing_in_common_is_0_and_case_and_spacing_do_not_count() -> None:
    assert similarity("refund it", "ship") == similarity("", "ship") == 0
    assert similarity("Refund  IT", "refund it") == pytest.approx(1)
    assert similarity("abcd", "bcd") == pytest.approx(0.5**0.5)


def test_it_sees_another_answer_and_gibberish_and_not_what_is_wrong() -> None:
    """Why it decides nothing, as the docstring says."""
    rows = [(chat(f"question {n}"), f"You are owed {n} dollars. {word * 3} will follow. {word} is what you asked.")
            for n, word in enumerate(["Shipping ", "Refunds ", "Billing ", "Letters "] * 10)]  # fmt: skip
    found: dict[str, list[float]] = {}
    for pair in plant(rows, 8):
        found.setdefault(pair.kind, []).append(similarity(pair.answer, pair.other))
    assert max(found["gibberish"]) < 0.5 < min(found["number changed"] + found["negated"])
    assert min(found["respaced"]) > 0.9


def test_the_newest_judged_answers_are_shown_by_what_the_judge_said(log: Log) -> None:
    candidate = known(log, evaluator=JUDGE)
    assert alike(log, candidate) == Alike(0, None, None)
    teachers = insert(log, ["x"] * 5, answer="abcd")
    judged(log, candidate, [1.0], exchange=teachers[0], answer="bcd")
    judged(log, candidate, [0.0], exchange=teachers[1], answer="zzz")
    judged(log, candidate, [1.0], exchange=teachers[2], answer="abcd ")  # Nobody was asked about the same text.
    judged(log, candidate, [0.0], exchange=teachers[3], answer="abc", error=UNREADABLE)
    judged(log, candidate, [0.0], exchange=teachers[4], answer="abc", kind="audit")
    found = alike(log, candidate)
    assert found is not None
    assert (found.judged, found.good, found.worse) == (2, pytest.approx(0.5**0.5), 0)
    for _ in range(2):
        judged(log, candidate, [1.0] * NEWEST, exchange=teachers[0], answer="zzz")
    assert alike(log, candidate) == Alike(NEWEST, 0, None)
    assert alike(log, known(log, "student-2")) is None
