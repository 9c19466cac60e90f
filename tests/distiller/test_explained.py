import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.explained import PREFIX, contradicts, emptied, prefixed, reasoning, reasoning_keys, whys, without
from router.settings import TaskSettings

LABELS = ("bug", "feature", "card arrival", "card")


def worked(number: int, answer: str | None = None) -> str:
    steps = f"There are {number} boxes of 3 balls each, all of them full, so all in all that makes 3 * {number} = "
    return json.dumps({"reasoning": f"{steps}{3 * number}.", "answer": answer or str(3 * number)})


def row(name: str, answer: str) -> Recorded:
    return Recorded(name, datetime.now(UTC), (), answer, 200, False, "stop", False, None)


def test_a_long_text_before_the_answer_is_the_reasoning() -> None:
    answers = [worked(number) for number in range(40)]
    assert reasoning_keys(answers) == ("reasoning",)
    assert reasoning(answers[2], ("reasoning",)).endswith("3 * 2 = 6.")
    turned = [json.dumps(dict(reversed(json.loads(answer).items()))) for answer in answers]
    assert reasoning_keys(turned) == ()  # It stands after the answer: nothing was thought before.
    assert reasoning_keys([json.dumps({"reasoning": json.loads(each)["reasoning"]}) for each in answers]) == ()
    assert reasoning_keys([json.dumps({"reasoning": "x" * 99, "answer": n}) for n in range(40)]) == ()
    assert reasoning_keys([json.dumps({"name": f"n{n}", "answer": n}) for n in range(40)]) == ()
    assert reasoning_keys(["go", "stop"] * 20) == reasoning_keys([]) == ()
    assert reasoning_keys([*answers[:30], *["no"] * 10]) == ()


def test_an_emptied_answer_keeps_its_form_and_is_compared_without() -> None:
    assert emptied(worked(4), ["reasoning"]) == '{"reasoning": "", "answer": "12"}'
    assert without(worked(4), ["reasoning"]) == without(emptied(worked(4), ["reasoning"]), ["reasoning"])
    assert without("go", ["reasoning"]) == emptied("go", ["reasoning"]) == "go"


@pytest.mark.parametrize(
    ("rationale", "answer", "wrong"),
    [
        ("It crashes, so it is a bug.", "bug", False),
        ("Something new is wanted: a feature.", "bug", True),
        ("A feature would be new; this is a bug.", "bug", False),
        ("It might be a feature or about the card.", "bug", False),  # Of two others, neither is its conclusion.
        ("It crashes.", "bug", False),
        ("It is about card-arrival.", "Card_Arrival", False),
        ("It is about card arrival.", "card", True),
        ("A defect, clearly.", "bug", False),
        ("That is an enhancement.", "bug", True),
        ("That is an enhancement.", "Feature.", False),
        ("debugging", "feature", False),
    ],
)
def test_labels_are_contradicted_by_one_other_label(rationale: str, answer: str, wrong: bool) -> None:
    labels = ("bug", "feature", "enhancement", "card_arrival", "card")
    assert contradicts(rationale, answer, labels, {"enhancement": "feature"}) is wrong


@pytest.mark.parametrize(
    ("rationale", "answer", "wrong"),
    [
        ("80 + 80 = 160.", "160", False),
        ("80 + 80 = 170.", "160", True),
        ("It costs $1,200.", '{"price": 1200, "currency": "USD"}', False),
        ("It costs $1,300.", '{"price": 1200, "currency": "USD"}', True),
        ("That is 20%.", "20", False),
        ("From 1 to 2.", '{"low": 1, "high": 3}', False),
        ("All of it.", "3", False),
        ("As 3 of them say.", "yes", False),
    ],
)
def test_numbers_are_contradicted_by_another_last_number(rationale: str, answer: str, wrong: bool) -> None:
    assert contradicts(rationale, answer, (), {}) is wrong


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_sum_that_is_worked_out_contradicts_only_other_answers(number: int, other: int) -> None:
    why = reasoning(worked(number), ["reasoning"])
    assert not contradicts(why, emptied(worked(number), ["reasoning"]), (), {})
    if 3 * number not in (other, 100 * other) and 300 * number != other:
        assert contradicts(why, f'{{"reasoning": "", "answer": {other}}}', (), {})


@given(st.sampled_from(LABELS), st.text(max_size=30))
def test_naming_the_answer_never_contradicts_it(label: str, more: str) -> None:
    assert not contradicts(f"{label}. {more}", label, LABELS, {})


def of_rows(rows: list[Recorded], rationales: dict[str, str], labels: tuple[str, ...] = ()) -> Dataset:
    return Dataset(
        "t", 1, 0, {}, rows, [], frozenset(), "label" if labels else "json", TaskSettings(), labels, rationales
    )


def test_what_contradicts_its_answer_is_counted_and_no_reason() -> None:
    rows = [row("a", "bug"), row("b", "feature"), row("c", "bug")]
    told = {"a": "It crashes: a bug.", "b": "So it is a bug.", "d": "Of a row there is not.", "c": ""}
    found = whys(of_rows(rows, told, ("bug", "feature")))
    assert (found.texts, found.contradicting, found.keys) == ({"a": "It crashes: a bug."}, 1, ())


def test_reasons_in_the_answers_go_before_what_was_asked_for() -> None:
    rows = [*(row(f"r{number}", worked(number)) for number in range(1, 40)), row("odd", worked(4, "13"))]
    found = whys(of_rows(rows, {"r1": "asked"}))
    assert (len(found.texts), found.contradicting, found.keys) == (39, 1, ("reasoning",))
    assert found.texts["r4"].endswith("3 * 4 = 12.")


def test_the_second_task_is_the_same_prompt_with_a_line_before_it() -> None:
    assert prefixed(_asked("Today is Monday.", "y")) == _asked(f"{PREFIX}\nToday is Monday.", "y")
    assert prefixed(_asked("", "x")) == _asked(PREFIX, "x")


def _asked(system: str, text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]
