import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from distiller.curate import Recorded
from distiller.leaves import joined
from distiller.stand_in import Outlook, outlook, part_agreement, wilson
from router.coverage import Plan
from router.evaluators import evaluator
from router.said import Said
from tests.distiller.test_noise import tickets

JUDGE = evaluator("label")


def score(row: Recorded, parts: dict[tuple[str, ...], str]) -> float:
    return JUDGE(row.request, Said(row.answer), Said(parts[()]))


def ahead(rows: list[Recorded], holdout: int) -> Outlook:
    train, late = rows[:-holdout], rows[-holdout:]
    return outlook(train, late, {(): [row.answer for row in train]}, score, 0.05, Plan())


def test_what_words_tell_apart_is_covered_and_can_be_proposed() -> None:
    found = ahead(tickets(400), 100)
    assert found.agreement.value == pytest.approx(1, abs=0.02)
    assert found.coverage.value == pytest.approx(1, abs=0.05)
    assert found.threshold is not None
    assert (found.times, found.majority) == (1, 0.5)
    assert found.curve.points[-1][0] == 300
    assert "reached" in found.curve.words


def test_a_proof_takes_more_exchanges_than_are_covered() -> None:
    found = ahead(tickets(400), 100)
    assert found.threshold is not None
    half = replace(found, threshold=replace(found.threshold, coverage=0.5, proof=100, n=50))
    assert (half.proof.value, "100 covered exchanges" in half.proof.basis) == (200, True)
    for threshold in (None, replace(found.threshold, proof=None)):
        assert replace(found, threshold=threshold).proof.value is None


def test_answers_that_are_drawn_at_random_are_not_covered() -> None:
    rng = random.Random(0)
    drawn = frozenset(number for number in range(600) if rng.random() < 0.5)
    found = ahead(tickets(600, drawn), 150)
    low, high = found.agreement.low, found.agreement.high
    assert low is not None
    assert high is not None
    assert low < 0.5 < high
    assert (found.threshold, found.times) == (None, None)


def test_a_small_holdout_shows_how_many_more_it_takes() -> None:
    found = ahead(tickets(200), 20)
    assert found.threshold is None
    assert found.times in (2, 3, 4)


def test_the_same_rows_give_the_same_outlook() -> None:
    assert ahead(tickets(120), 40) == ahead(tickets(120), 40)


def test_each_part_is_looked_at_by_itself_and_a_json_answer_by_its_leaves() -> None:
    rows = tickets(200)
    train, late = rows[:150], rows[150:]
    parts = {("queue",): [f'"{row.answer}"' for row in train], ("n",): [str(number % 2) for number in range(150)]}
    held = {("queue",): [f'"{row.answer}"' for row in late], ("n",): [str(number // 2 % 2) for number in range(50)]}
    told = part_agreement(train, late, parts, held)
    assert told["queue",].value == pytest.approx(1, abs=0.05)
    assert told["n",].value == pytest.approx(0.5, abs=0.2)
    json = evaluator("json")

    def alike(row: Recorded, said: dict[tuple[str, ...], str]) -> float:
        return json({}, Said(f'{{"queue": "{row.answer}", "n": 5}}'), Said(joined(said)))

    found = outlook(train, late, parts, alike, 0.05, Plan())
    assert found.agreement.value == pytest.approx(0.5, abs=0.03)
    assert found.agreement.low is not None
    assert found.agreement.low <= found.agreement.value


def test_an_answer_is_as_sure_as_its_least_sure_part() -> None:
    rows = tickets(300)
    train, late = rows[:200], rows[200:]
    sure = {("queue",): [row.answer for row in train]}
    rng = random.Random(0)
    drawn = {("coin",): [rng.choice("ab") for _ in train]}

    def covered(parts: dict[tuple[str, ...], list[str]]) -> float | None:
        found = outlook(train, late, parts, lambda row, said: float(said["queue",] == row.answer), 0.05, Plan())
        return found.threshold and found.threshold.value

    alone, with_a_coin = covered(sure), covered(drawn | sure)
    assert alone is not None
    assert with_a_coin is not None
    assert with_a_coin < 0.7 < alone


def test_all_train_rows_are_used_for_what_is_told() -> None:
    found = ahead(tickets(400), 100)
    assert found.agreement.value == found.curve.points[-1][1]
    fewer = ahead(tickets(60, frozenset({1, 8, 11, 20, 23}), seed=3), 20)
    assert fewer.agreement.value == fewer.curve.points[-1][1] != fewer.curve.points[0][1]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_interval_that_scipy_has(counts: tuple[int, int]) -> None:
    k, n = counts
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
