"""The gate's benchmark judges kept answers: what it certifies, and that it would say so if an impostor got through."""

import random
from typing import Any

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
        return {"teacher": teacher, "text": teacher if right else other, "confidence": confidence, "finished": True}

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
