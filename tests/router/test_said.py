import json
from typing import Any

import pytest

from router.said import Call, Said, from_log, from_message


def call(name: object, arguments: object) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_text_and_calls_from_the_columns_of_the_log() -> None:
    calls = json.dumps([call("book", '{"seats": 2}'), call("pay", "")])
    assert from_log("Booking.", calls) == Said("Booking.", (Call("book", {"seats": 2}), Call("pay", {})))
    assert from_log("yes", None) == Said("yes")
    assert from_log(None, None) == Said(None)


def test_the_wire_says_the_same() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call("book", '{"seats": 2}')]}
    assert from_message(message) == from_log(None, json.dumps(message["tool_calls"]))
    assert from_message({"content": "yes"}) == from_message({"content": "yes", "tool_calls": None}) == Said("yes")
    assert from_message({"content": [{"type": "text"}]}) == Said(None)


@pytest.mark.parametrize("arguments", ["{", '{"a": NaN}', "[1]", "3", "null", [1], "[" * 100_000])
def test_arguments_that_are_no_object_are_none(arguments: object) -> None:
    assert from_message({"tool_calls": [call("book", arguments)]}) == Said(None, (Call("book", None),))


@pytest.mark.parametrize("broken", ["{", "7", '"x"', "[3]", "[{}]", '[{"function": {"name": 4}}]', '{"a": 1}'])
def test_a_call_that_cannot_be_read_is_still_a_call(broken: str) -> None:
    assert from_log("text", broken) == Said("text", (Call("", None),))


def test_only_an_answer_that_calls_nothing_is_plain() -> None:
    assert Said("yes").plain == "yes"
    assert Said(None).plain == ""
    assert Said("yes", (Call("book", {}),)).plain is None
