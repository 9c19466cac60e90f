"""The gate's benchmark judges kept answers: what it certifies, and that it would say so if an impostor got through."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.early import auroc, early
from tests.bench.gate_table import judge, table

LABELS = ["billing", "shipping"]


def answers(good: float, kind: str = "own", seed: int = 1, **changes: Any) -> dict[str, Any]:
    """A student that is right in `good` of the answers it is sure of, which are four in five, and else guesses."""
    draw = random.Random(seed)

    def row() -> dict[str, Any]:
        teacher = draw.choice(LABELS)
        sure = draw.random() < 0.8
        right = draw.random() < (good if sure else 0.5)
        other = LABELS[1 - LABELS.index(teacher)]
        confidence = draw.uniform(0.8, 1.0) if sure else draw.uniform(0.3, 0.7)
        text, logprobs = teacher if right else other, [math.log(confidence) / 2, math.log(confidence) / 2, 0.0]
        return {"teacher": teacher, "text": text, "confidence": confidence, "finished": True, "logprobs": logprobs}

    given = {
        "kind": kind, "set": "queues", "by": None, "evaluator": "label", "labels": LABELS, "trained": {"tokens": 1000},
        "scores": {"base": 0.1, "base_rows": 8}, "holdout": [row() for _ in range(200)],
        "test": [row() for _ in range(400)],
    }  # fmt: skip
    return given | changes


def test_the_sure_part_of_a_good_student_is_certified() -> None:
    judged = judge(answers(good=1.0), 0.05, 0.025)
    assert (judged.selective.proven, judged.whole.proven) == (True, False)
    assert judged.interval[0] < 0.8 < judged.interval[1]
    assert judged.covered / judged.rows <= judged.at_retention < 1


def test_what_breaks_the_form_is_never_covered() -> None:
    rows = answers(good=1.0)
    rows["test"] = [{**row, "text": "elsewhere"} if place % 2 else row for place, row in enumerate(rows["test"])]
    assert judge(rows, 0.05, 0.025).covered <= 200


def test_impostors_are_declined_and_one_that_is_not_is_counted() -> None:
    text, wrong = table([answers(good=1.0), answers(good=0.6, kind="foreign", by="mails")], 0.05, 0.05, 1)
    assert wrong == 0
    assert "student of mails" in text
    assert text.count("declined |") == 1 + 3  # the heading, the foreign student, two made of the own answers
    text, wrong = table([answers(good=1.0, kind="shuffled"), {"kind": "tools", "set": "calls"}], 0.05, 0.05, 1)
    assert wrong == 1
    assert "CERTIFIED" in text
    assert "| calls | not served" in text


def test_what_is_told_early_is_what_the_first_tokens_say() -> None:
    given = answers(good=1.0)
    verdicts = [float(row["text"] == row["teacher"]) for row in given["test"]]
    cells = early(given, verdicts, [True] * len(verdicts), 0.95).strip("| ").split(" | ")[1:]
    assert cells[0] == "3"
    assert len(set(cells[1:])) == 1  # The two first tokens share all doubt, so any of them tells as much as all.
    blind = {**given, "test": [{**row, "logprobs": [0.0, *row["logprobs"]]} for row in given["test"]]}
    assert early(blind, verdicts, [True] * len(verdicts), 0.95).split(" | ")[2].startswith("0.500, ")


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_the_area_is_the_chance_that_a_right_one_is_surer(rows: list[tuple[int, bool]]) -> None:
    good, bad = ([sure for sure, right in rows if right is wanted] for wanted in (True, False))
    found = auroc([float(sure) for sure, _ in rows], [right for _, right in rows])
    if not good or not bad:
        assert found is None
        return
    chance = sum((a > b) + (a == b) / 2 for a in good for b in bad) / (len(good) * len(bad))
    assert found == pytest.approx(chance)
