import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.traffic_file import read_traffic
from router.evaluators import (
    EVALUATORS,
    choose_evaluator,
    evaluator,
    evaluator_for,
    known_labels,
    normalise,
    well_formed,
)
from router.said import Call, Said, from_message
from router.settings import TaskSettings

CALLS = Said(None, (Call("book", {"seats": 2}),))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-50, 50) | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
containers = st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=4)
texts = st.text(max_size=30) | containers.map(json.dumps) | st.integers().map(str) | st.just("x = 1")
saids = st.builds(Said, texts) | st.just(CALLS) | st.just(Said(None))
SLOW = settings(deadline=None)  # The first pairing loads scipy.


def score(name: str, teacher: str, candidate: str) -> float:
    return evaluator(name)({}, Said(teacher), Said(candidate))


@SLOW
@given(saids, saids)
def test_a_verdict_is_in_the_unit_interval_and_symmetric(one: Said, other: Said) -> None:
    for evaluate in EVALUATORS.values():
        assert 0 <= evaluate({}, one, other) <= 1
        assert evaluate({}, one, other) == evaluate({}, other, one)


@SLOW
@given(saids)
def test_the_same_answer_agrees_fully_where_it_has_the_form(said: Said) -> None:
    for name, evaluate in EVALUATORS.items():
        if well_formed(name, said, frozenset({normalise(said.plain or "")})):
            assert evaluate({}, said, said) == 1


def test_evaluators_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        EVALUATORS["mine"] = EVALUATORS["exact"]  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(EVALUATORS.keys() - {"tools"}))
def test_who_compares_texts_cannot_judge_calls(name: str) -> None:
    assert EVALUATORS[name]({}, CALLS, CALLS) == EVALUATORS[name]({}, Said("7"), CALLS) == 0
    assert not well_formed(name, CALLS, frozenset({""}))


@pytest.mark.parametrize(
    "variant", ["refund", " Refund. ", '"REFUND"', "\u201crefund!\u201d", "\uff52efund", "'refund'."]
)
def test_labels_that_mean_the_same(variant: str) -> None:
    assert score("label", "refund", variant) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("refund", "refunds"), ("not ok", "ok"), ("!", "."), ("-1", "1"), ("a b", "ab")]
)
def test_labels_that_do_not(one: str, other: str) -> None:
    assert score("label", one, other) == 0


def test_aliases_mean_another_label_after_normalising() -> None:
    evaluate = evaluator("label", {"Money back": "refund"})
    assert evaluate({}, Said("Refund."), Said('"money  back"')) == evaluate({}, Said("money back"), Said("refund")) == 1
    assert evaluate({}, Said("refund"), Said("money")) == 0
    assert known_labels(["Refund", "order"], {"Money back": "refund", "x": "y"}) == ("money back", "order", "refund")
    assert known_labels(["money back"], {"Money back": "refund"}) == ("money back", "refund")


def test_sets_are_declared_or_said_by_the_requests_schema() -> None:
    one, other = Said('{"tags": [1, 2], "ids": [3, 4]}'), Said('{"tags": [2, 1], "ids": [4, 3]}')
    schema = {"properties": {"ids": {"type": "array", "uniqueItems": True}}}
    request = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    assert evaluator("json")({}, one, other) == 0
    assert evaluator("json")(request, one, other) == evaluator("json", sets=["tags"])({}, one, other) == 0.5
    assert evaluator("json", sets=["tags"])(request, one, other) == 1


@pytest.mark.parametrize("odd", [{"response_format": 3}, {"response_format": {"json_schema": 3}}, {"tools": 3}])
def test_an_odd_request_is_no_reason_to_fail(odd: dict[str, Any]) -> None:
    for evaluate in EVALUATORS.values():
        assert 0 <= evaluate(odd, Said("[1]"), CALLS) <= 1
        assert evaluate(odd, Said("[1]"), Said("[1]")) in (0, 1)


def test_label_spacing_is_collapsed() -> None:
    assert normalise("Late\n\t delivery") == "late delivery"


def test_exact_forgives_only_the_space_around() -> None:
    assert score("exact", " same\n", "same") == 1
    assert score("exact", "Same", "same") == 0


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
        ([str(i) for i in range(21)] * 4, "number"),
        ([f"${i:,}.50" for i in range(990, 1085)] + ["I cannot say."] * 5, "number"),
        ([f"{i} apples" for i in range(100)], "exact"),
        ([f"word{i}" for i in range(201)] * 6, "exact"),
        ([f"word{i}" for i in range(200)] * 6, "label"),
        ([f"```python\nx = {i}\n```" for i in range(95)] + ["I cannot say."] * 5, "code"),
        ([f"def f():\n    return {i}" for i in range(20)], "code"),
        ([f"print({i})" for i in range(20)], "exact"),
        (["Yes", "yes.", '"yes"', "NO"], "label"),
        (["y" * 80] * 95 + ["y" * 81] * 5, "label"),
        (["y" * 80] * 94 + ["y" * 81] * 6, "exact"),
    ],
)
def test_the_evaluator_follows_the_answers(seen: list[str], name: str) -> None:
    assert choose_evaluator([Said(text) for text in seen]) == name


def test_calls_that_are_not_rare_are_what_matters() -> None:
    assert choose_evaluator([Said("yes")] * 94 + [CALLS] * 6) == "tools"
    assert choose_evaluator([Said("yes")] * 95 + [CALLS] * 5) == "label"
    assert choose_evaluator([CALLS]) == "tools"


def test_no_answers_no_evaluator() -> None:
    with pytest.raises(BadInput, match="no answers"):
        choose_evaluator([])


@given(st.lists(saids, min_size=1, max_size=30))
def test_the_chosen_evaluator_exists_and_the_teacher_is_well_formed_by_it(seen: list[Said]) -> None:
    name = choose_evaluator(seen)
    assert name in EVALUATORS
    labels = frozenset(normalise(said.plain or "") for said in seen)
    formed = sum(well_formed(name, said, labels) for said in seen)
    assert formed * 100 >= 95 * len(seen) or name in ("exact", "tools")


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("json", "{}", True), ("json", "3", False),
        ("label", " Yes.", True), ("label", "maybe", False), ("label", "", False),
        ("number", "So it is 5.", True), ("number", "five", False), ("code", "x = 1", True), ("code", "x =", False),
        ("tools", "Which one?", True), ("tools", "", False),
        ("exact", "anything", True), ("exact", " \n", False),
        ("not.there:yet", "anything", True), ("not.there:yet", " ", False),
    ],
)  # fmt: skip
def test_form(name: str, answer: str, expected: bool) -> None:
    assert well_formed(name, Said(answer), frozenset({"yes", "no"})) is expected


def test_an_unknown_evaluator_is_refused() -> None:
    for use in (lambda: well_formed("vibes", Said("x"), frozenset()), lambda: evaluator("vibes")):
        with pytest.raises(BadInput, match="label, json, tools, number, code, exact, judge, or package"):
            use()


def test_what_is_declared_wins_over_what_is_found() -> None:
    yes = [Said("yes")] * 9
    assert evaluator_for(TaskSettings(), yes) == "label"
    assert evaluator_for(TaskSettings(evaluator="exact"), yes) == "exact"
    assert evaluator_for(TaskSettings(evaluator="mine.scores:f"), yes) == "mine.scores:f"
    assert evaluator_for(TaskSettings(aliases={"y": "yes"}), yes) == "label"


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (TaskSettings(evaluator="vibes"), "unknown evaluator"), (TaskSettings(sets=("a",)), "sets are for"),
        (TaskSettings(evaluator="json", aliases={"a": "b"}), "aliases are for"),
        (TaskSettings(aliases={"a": "b", "B.": "c"}), "alias of an alias: 'b'"),
    ],
)  # fmt: skip
def test_nothing_that_is_declared_is_ignored(declared: TaskSettings, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        evaluator_for(declared, [Said("yes")] * 9)


@pytest.fixture(scope="module")
def data() -> Path:
    if "STILLROOM_DATA" not in os.environ:
        pytest.skip("STILLROOM_DATA names no folder of recorded traffic")
    return Path(os.environ["STILLROOM_DATA"])


def recorded(path: Path) -> Iterator[tuple[dict[str, Any], Said, Any]]:
    """(request, what the teacher said, the right answer) of each row."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for row, line in zip(read_traffic(path), lines, strict=False):
        message = {"content": row.answer, "tool_calls": row.tool_calls and list(row.tool_calls)}
        yield (
            {"messages": row.messages, "tools": list(row.tools or ())},
            from_message(message),
            json.loads(line)["gold"],
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("github_issue_triage", "label"), ("media_bias", "label"), ("intent_banking77", "label"),
        ("gsm8k_gpt4o", "json"), ("nlu_snips_json", "json"), ("nlu_multilingual_json", "json"),
        ("tool_calls_bfcl", "tools"),
    ],
)  # fmt: skip
def test_recorded_tasks_get_the_evaluator_a_person_would_choose(data: Path, name: str, expected: str) -> None:
    for part in ("train", "test"):
        assert choose_evaluator([said for _, said, _ in recorded(data / name / f"{part}.jsonl")]) == expected


def meant(gold: str, said: Said) -> Said:
    """The right calls, with this answer's own value wherever it is among the right ones ("" is none at all)."""
    calls = []
    for ((name, right),) in () if gold == "NO_CALL" else (wanted.items() for wanted in json.loads(gold)):
        name = name.replace(".", "_")  # As the API wants names.
        given = [call.arguments or {} for call in said.tool_calls if call.name == name]
        tries = [
            {
                key: one[key] if key in one and _among(one[key], values) else values[0]
                for key, values in right.items()
                if key in one or "" not in values
            }
            for one in ({}, *given)
        ]
        alike = [max([0, *(sum(one.get(key) == other[key] for key in other) for other in given)]) for one in tries]
        calls.append(Call(name, tries[alike.index(max(alike))]))
    return Said(None, tuple(calls))


def _among(value: Any, right: list[Any]) -> bool:
    """Whether the file's own rules take a value for a right one: in texts, case and punctuation do not matter."""
    if isinstance(value, dict):
        return any(
            isinstance(one, dict) and all(key in one and _among(inner, one[key]) for key, inner in value.items())
            for one in right
        )
    return any(_plain(value) == _plain(one) for one in right)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return re.sub(r"[ ,./_*^-]", "", value).lower() if isinstance(value, str) else value


def test_the_teacher_agrees_with_what_is_right_as_often_as_is_known(data: Path) -> None:
    parts = ("train.jsonl", "test.jsonl")
    triage = [
        EVALUATORS["label"](request, Said(gold), said)
        for part in parts
        for request, said, gold in recorded(data / "github_issue_triage" / part)
    ]
    tools = [
        EVALUATORS["tools"](request, meant(gold, said), said)
        for part in parts
        for request, said, gold in recorded(data / "tool_calls_bfcl" / part)
    ]
    assert sum(triage) / len(triage) == pytest.approx(0.79, abs=0.01)
    # The folder's own figure is 0.85, by a reading of its right answers that it does not give.
    assert sum(verdict == 1 for verdict in tools) / len(tools) == pytest.approx(0.90, abs=0.01)
