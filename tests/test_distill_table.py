"""The distiller's benchmark judges kept answers: retention against the right answer, controls, differences of pairs."""

from typing import Any

import numpy as np
import pytest

from tests.bench.distill_table import majority, paired, retention, table, verdicts


def rows(text: list[str], teacher: list[str], gold: list[str | None], **more: Any) -> list[dict[str, Any]]:
    return [
        {"text": a, "teacher": b, "gold": c, "confidence": 0.9, "finished": True, "meta": {"lang": "de"}} | more
        for a, b, c in zip(text, teacher, gold, strict=True)
    ]


def answers(test: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    given = {
        "set": "queues", "kind": "head", "evaluator": "label", "labels": ["a", "b"], "rows": 50, "seconds": 6.0,
        "trained": {"seconds": 2.0}, "scores": {"base": None, "base_rows": 0}, "holdout": test, "test": test,
    }  # fmt: skip
    return given | changes


def test_retention_is_on_the_right_answer_where_it_is_known_and_else_on_agreement() -> None:
    said, teacher = ["a"] * 60 + ["b"] * 40, ["a"] * 80 + ["b"] * 20
    known = retention(answers(rows(said, teacher, ["a"] * 100)), 1)  # 60 right of the teacher's 80
    assert known[0] == pytest.approx(0.75)
    assert 0.6 < known[1] < 0.75
    assert retention(answers(rows(said, teacher, [None] * 100)), 1)[0] == pytest.approx(0.8)
    assert retention(answers(rows(teacher, teacher, ["a"] * 100)), 1) == (1.0, 1.0)


def test_a_bare_right_answer_is_found_in_an_answer_in_json_and_what_never_ended_is_wrong() -> None:
    given = answers([], evaluator="json")
    some = rows(['{"reasoning": "1 + 1", "answer": "2"}', '{"answer": "3"}', "2"], ["{}"] * 3, ["2"] * 3)
    assert verdicts(given, some, "gold")[:2].tolist() == [1.0, 0.0]
    assert verdicts(given, rows(["2"], ["2"], ["2"], finished=False), "teacher").tolist() == [0.0]


def test_controls_and_students_stand_in_one_table() -> None:
    test = rows(["a"] * 90 + ["b"] * 10, ["a"] * 100, ["a"] * 100)
    assert majority(answers(test), ["a", "a", "b"]) == 1.0
    text = table(
        [answers(test), {"set": "queues", "kind": "encoder", "why": "too few"}],
        {"queues": {"majority": 0.5, "naive Bayes": 0.6, "base": 0.1}}, 0.05, 0.05, 1,
    )  # fmt: skip
    assert "| queues | head | 0.900 (100) | 1.000 / 0.900 | 0.900 (0.8" in text
    assert "| 50 | 0.1 | - | 0.500 | 0.600 | 0.100 |" in text
    assert "| queues | encoder | none: too few |" in text


def test_a_difference_of_pairs_has_bounds_on_both_sides() -> None:
    assert paired(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 1) == (0.0, 0.0, 0.0)
    mean, low, high = paired(np.array([1.0] * 9 + [0.0]), np.zeros(10), 1)
    assert low < mean == 0.9 < high == 1.0
