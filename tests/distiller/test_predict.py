from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.predict import FACTS, one_text, read_facts, write_facts
from proxy.errors import BadInput
from router.prompt import student_messages
from tests.distiller.queues import asking

TEXT = st.text(min_size=1)


def test_one_turn_is_its_text_alone() -> None:
    assert one_text(asking("refund")) == "refund"
    assert one_text(student_messages([{"role": "user", "content": "refund"}], frozenset())) == "refund"


def test_what_varies_in_the_instructions_comes_first() -> None:
    prompt = [{"role": "system", "content": "Queues: a, b\nTone: calm"}, {"role": "user", "content": "refund"}]
    assert one_text(prompt) == "Queues: a, b\nTone: calm\nrefund"


def test_several_turns_say_who_spoke() -> None:
    turns = [("user", "hi"), ("assistant", "yes?"), ("user", "refund")]
    prompt = [{"role": "system", "content": ""}, *({"role": role, "content": text} for role, text in turns)]
    assert one_text(prompt) == "user: hi\nassistant: yes?\nuser: refund"


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT)))
def test_nothing_that_was_said_is_left_out(said: list[tuple[str, str]]) -> None:
    text = one_text([{"role": role, "content": content} for role, content in said])
    assert all(content in text for _, content in said)


def test_facts_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_facts(tmp_path, "head", {"labels": ["größer", "b"], "c": 1.0})
    assert read_facts(tmp_path) == {"kind": "head", "labels": ["größer", "b"], "c": 1.0}


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"kind": 3}', b"\xff"])
def test_a_folder_without_facts_is_no_student(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / FACTS).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput, match="distill again"):
        read_facts(tmp_path)
