import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from router.evaluators import EVALUATORS, JsonAgreement, choose_evaluator, json_agreement, normalise, well_formed

scalars = st.none() | st.booleans() | st.integers(-50, 50) | st.floats(-9, 9) | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
containers = st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=4)
answers = st.text(max_size=30) | containers.map(json.dumps)


@given(answers, answers)
def test_a_verdict_is_in_the_unit_interval_and_symmetric(one: str, other: str) -> None:
    for evaluate in EVALUATORS.values():
        assert 0 <= evaluate(one, other) <= 1
        assert evaluate(one, other) == evaluate(other, one)


@given(containers)
def test_the_same_json_agrees_fully_however_it_is_printed(value: Any) -> None:
    printed = json.dumps(value, indent=2, ensure_ascii=False)
    assert json_agreement(json.dumps(value), printed) == JsonAgreement(1.0, 0, 0, 0)
    assert all(evaluate(printed, printed) == 1 for evaluate in EVALUATORS.values())


@given(containers, containers)
def test_full_agreement_leaves_nothing_to_report(one: Any, other: Any) -> None:
    found = json_agreement(json.dumps(one), json.dumps(other))
    assert (found.f1 == 1) == (found.missing == found.invented == found.wrong == 0)


def test_evaluators_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        EVALUATORS["mine"] = EVALUATORS["exact"]  # type: ignore[index]


@pytest.mark.parametrize(
    "variant", ["refund", " Refund. ", '"REFUND"', "\u201crefund!\u201d", "\uff52efund", "'refund'."]
)
def test_labels_that_mean_the_same(variant: str) -> None:
    assert EVALUATORS["label"]("refund", variant) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("refund", "refunds"), ("not ok", "ok"), ("!", "."), ("-1", "1"), ("a b", "ab")]
)
def test_labels_that_do_not(one: str, other: str) -> None:
    assert EVALUATORS["label"](one, other) == 0


def test_label_spacing_is_collapsed() -> None:
    assert normalise("Late\n\t delivery") == "late delivery"


def test_exact_forgives_only_the_space_around() -> None:
    assert EVALUATORS["exact"](" same\n", "same") == 1
    assert EVALUATORS["exact"]("Same", "same") == 0


def test_json_counts_each_kind_of_difference() -> None:
    teacher = '{"id": 7, "tags": ["a", "b"], "open": true, "note": null}'
    candidate = '{"id": 7.0, "tags": ["a", "c"], "open": 1, "extra": {}}'
    assert json_agreement(teacher, candidate) == JsonAgreement(f1=2 * 2 / 10, missing=1, invented=1, wrong=2)


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ('{"a": 1}', '{"a": 1.0}', 1.0),
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": 1}', '{"a": "1"}', 0.0),
        ('{"a": 0}', '{"a": null}', 0.0),
        ('{"a": " x\uff11 "}', '{"a": "x1"}', 1.0),
        ('{"a": {}}', '{"a": []}', 0.0),
        ("{}", "{}", 1.0),
        ("{}", "[]", 0.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ('{"0": 1}', "[1]", 0.0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 2 / 3),
        (f'{{"a": {2**53}}}', f'{{"a": {2**53 + 1}}}', 0.0),
    ],
)
def test_json_leaves_are_typed_and_have_a_place(one: str, other: str, verdict: float) -> None:
    assert EVALUATORS["json"](one, other) == pytest.approx(verdict)


BROKEN = [
    "", "plain", '{"a": 1', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1, "a": 1}', '[{"x": 1, "x": 2}]',
    '```json\n{"a": 1}\n```', '{"a": 1} done', "[" * 100_000, "[" + "1" * 5_000 + "]", "7", "true", '"word"',
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_json_object_or_array_scores_nothing(broken: str) -> None:
    assert json_agreement('{"a": 1}', broken) == JsonAgreement(0.0, missing=1, invented=0, wrong=0)
    assert json_agreement(broken, '{"a": 1}') == JsonAgreement(0.0, missing=0, invented=1, wrong=0)
    assert EVALUATORS["json"](broken, broken) == 0
    assert not well_formed("json", broken, frozenset())


def test_deep_json_is_compared() -> None:
    deep = "[" * 900 + "1" + "]" * 900
    assert json_agreement(deep, deep).f1 == 1


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (['{"a": 1}'] * 95 + ["sorry"] * 5, "json"),
        (['{"a": 1}'] * 94 + ["sorry"] * 6, "label"),
        ([f'{{"a": {i}}}' for i in range(94)] + ["sorry"] * 6, "exact"),
        (["[]"], "json"),
        (["1", "2", "3", "4", "5"] * 5, "label"),
        (["true", "false"], "label"),
        ([str(i) for i in range(20)] * 5, "label"),
        ([str(i) for i in range(21)] * 4, "exact"),
        ([str(i) for i in range(201)] * 6, "exact"),
        ([str(i) for i in range(200)] * 6, "label"),
        (["Yes", "yes.", '"yes"', "NO"], "label"),
        (["y" * 80] * 95 + ["y" * 81] * 5, "label"),
        (["y" * 80] * 94 + ["y" * 81] * 6, "exact"),
    ],
)
def test_the_evaluator_follows_the_answers(seen: list[str], name: str) -> None:
    assert choose_evaluator(seen) == name


def test_no_answers_no_evaluator() -> None:
    with pytest.raises(BadInput, match="no answers"):
        choose_evaluator([])


@given(st.lists(answers, min_size=1, max_size=30))
def test_the_chosen_evaluator_exists_and_the_teacher_is_well_formed_by_it(seen: list[str]) -> None:
    name = choose_evaluator(seen)
    assert name in EVALUATORS
    labels = frozenset(map(normalise, seen))
    formed = sum(well_formed(name, answer, labels) for answer in seen)
    assert formed == sum(bool(answer.strip()) for answer in seen) or name != "exact"
    assert formed * 100 >= 95 * len(seen) or name == "exact"


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("json", "{}", True), ("json", "3", False),
        ("label", " Yes.", True), ("label", "maybe", False), ("label", "", False),
        ("exact", "anything", True), ("exact", " \n", False),
    ],
)  # fmt: skip
def test_form(name: str, answer: str, expected: bool) -> None:
    assert well_formed(name, answer, frozenset({"yes", "no"})) is expected


def test_an_unknown_evaluator_is_refused() -> None:
    with pytest.raises(BadInput, match="label, json, exact"):
        well_formed("vibes", "x", frozenset())
