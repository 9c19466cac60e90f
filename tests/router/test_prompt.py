import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from router.prompt import changed, extra_lines, line_hash, static_lines, student_messages


def prompt(system: object, user: object = "hello", role: str = "system") -> list[dict[str, object]]:
    return [{"role": role, "content": system}, {"role": "user", "content": user}]


def test_lines_in_every_prompt_are_static_and_the_rest_is_not():
    prompts = [prompt(f"Sort the mail.\n  Customer {n}\n\nAnswer with one word.  ") for n in range(5)]
    assert static_lines(prompts) == {line_hash("Sort the mail."), line_hash("Answer with one word.")}


@pytest.mark.parametrize(("without", "is_static"), [(1, True), (2, False)])
def test_one_prompt_in_a_hundred_may_lack_the_line(without: int, is_static: bool):
    prompts = [prompt("other" if n < without else "Sort the mail.") for n in range(100)]
    assert (line_hash("Sort the mail.") in static_lines(prompts)) is is_static


def test_a_line_repeated_in_one_prompt_counts_once():
    assert static_lines([prompt("a\na\na"), prompt("b"), prompt("c")]) == frozenset()


@pytest.mark.parametrize("prompts", [[], [prompt("Sort the mail.")]])
def test_of_fewer_than_two_prompts_nothing_is_static(prompts: list[list[dict[str, object]]]):
    assert static_lines(prompts) == frozenset()


def test_developer_messages_and_text_parts_are_instructions_too():
    parts = [{"type": "text", "text": "Sort "}, {"type": "text", "text": "the mail."}]
    assert static_lines([prompt("Sort the mail."), prompt(parts, role="developer")]) == {line_hash("Sort the mail.")}


def test_what_varies_is_shown_and_what_is_static_is_not():
    shown = student_messages(prompt("Sort the mail.\nCustomer 7"), frozenset({line_hash("Sort the mail.")}))
    assert shown == [{"role": "system", "content": "Customer 7"}, {"role": "user", "content": "hello"}]


def test_a_line_of_mixed_parts_stays_whole():
    prompts = [prompt(f"Sort the mail. Today is day {n}") for n in range(9)]
    assert student_messages(prompts[3], static_lines(prompts))[0]["content"] == "Sort the mail. Today is day 3"


def test_an_empty_system_message_leads_when_nothing_is_left():
    assert student_messages([{"role": "user", "content": "x"}], frozenset())[0] == {"role": "system", "content": ""}


def test_instructions_in_the_middle_move_to_the_front():
    messages = [{"role": "user", "content": "x"}, {"role": "system", "content": "Be brief."}]
    assert [m["role"] for m in student_messages(messages, frozenset())] == ["system", "user"]


def test_the_conversation_is_kept_as_plain_text():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Sort the mail.\n"}, {"type": "text", "text": "now"}]},
        {"role": "assistant", "content": None},
    ]
    shown = student_messages(messages, frozenset({line_hash("Sort the mail.")}))
    assert shown[1:] == [{"role": "user", "content": "Sort the mail.\nnow"}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ({"role": "user", "content": ["loose"]}, "type str"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "type text"),
        ({"role": "user", "content": 3}, "content must be"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "tool calls"),
        ({"content": "x"}, "role"),
    ],
)
def test_what_a_text_student_cannot_read_is_refused(message: dict[str, object], says: str):
    with pytest.raises(BadInput, match=says):
        student_messages([message], frozenset())


@given(st.lists(st.text(alphabet="ab \n", max_size=12), min_size=2, max_size=5))
def test_only_lines_of_the_prompts_are_shown_and_never_a_static_one(systems: list[str]):
    prompts = [prompt(system) for system in systems]
    static = static_lines(prompts)
    for system, messages in zip(systems, prompts, strict=True):
        lines = [line for line in student_messages(messages, static)[0]["content"].split("\n") if line]
        assert lines == [line.rstrip() for line in system.split("\n") if line.strip() and line_hash(line) not in static]


@given(
    st.lists(st.sampled_from(["one", "two", "three", "", "  "]), max_size=6), st.sets(st.sampled_from(["one", "two"]))
)
def test_instructions_are_changed_when_a_fixed_line_is_missing_or_more_lines_vary(
    lines: list[str], fixed: set[str]
) -> None:
    messages = [{"role": "system", "content": "\n".join(lines)}, {"role": "user", "content": "three"}]
    static = frozenset(map(line_hash, fixed))
    extra = sum(bool(line.strip()) and line not in fixed for line in lines)
    assert extra_lines(messages, static) == extra
    missing = not fixed <= set(lines)
    assert changed(messages, static, None) is missing
    assert changed(messages, static, extra) is missing
    assert changed(messages, static, extra - 1) is True
