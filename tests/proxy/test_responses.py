import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from proxy.responses import answer_as_chat, counts, request_as_chat, streamed

USAGE = {
    "input_tokens": 30, "input_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 0}, "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 37,
}  # fmt: skip
REASONING = {"type": "reasoning", "id": "rs_1", "summary": []}
REFUSAL = {"type": "refusal", "refusal": "I can't."}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": '{"place":"Oslo"}'}
CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Oslo"}'}}


def text(value: str) -> dict[str, Any]:
    return {"type": "output_text", "text": value, "annotations": [], "logprobs": []}


def message(*parts: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": list(parts)}


def response(*output: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "gpt-4o-2024-08-06",
        "output": list(output), "usage": USAGE, "error": None, "incomplete_details": None, "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": True, "instructions": None, "metadata": {}, "temperature": 1.0,
        "top_p": 1.0,
    } | fields  # fmt: skip


def chosen(*output: Any, **fields: Any) -> tuple[str | None, list[Any], str | None]:
    (choice,) = answer_as_chat(response(*output, **fields))["choices"]
    return choice["message"]["content"], choice["message"]["tool_calls"], choice["finish_reason"]


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": f"response.{kind}", **fields}, ensure_ascii=False)


def created() -> str:
    return event("created", response=response(status="in_progress", usage=None))


def said(delta: str, at: int = 0) -> str:
    return event("output_text.delta", output_index=at, content_index=0, item_id="msg_1", delta=delta)


def test_the_examples_are_what_the_openai_client_reads() -> None:
    body = response(REASONING, message(text("he"), text("llo")), CALL)
    assert Response.model_validate(body).output_text == chosen(*body["output"])[0] == "hello"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([REASONING, message(text("hel"), text("lo"))], ("hello", [], "stop")),
        ([message(text("one ")), REASONING, message(text("two"))], ("one two", [], "stop")),
        ([message(text(""))], ("", [], "stop")),
        ([message(REFUSAL)], (None, [], "stop")),
        ([message(text("Well. "), REFUSAL)], ("Well. ", [], "stop")),
        ([CALL], (None, [CHAT_CALL], "tool_calls")),
        ([message(text("Looking.")), CALL], ("Looking.", [CHAT_CALL], "tool_calls")),
        ([{"type": "web_search_call"}, {"no": "type"}], (None, [], "stop")),
    ],
)
def test_output_items_become_one_message(output: list[Any], expected: Any) -> None:
    assert chosen(*output) == expected


@pytest.mark.parametrize(
    ("status", "details", "expected"),
    [
        ("incomplete", {"reason": "max_output_tokens"}, "length"),
        ("incomplete", {"reason": "content_filter"}, "content_filter"),
        ("incomplete", {"reason": "new"}, "new"),
        ("incomplete", None, None),
        ("failed", None, None),
        ("cancelled", None, None),
        ("queued", None, None),
        ("in_progress", None, None),
        (None, None, None),
    ],
)
def test_how_it_ended(status: str | None, details: Any, expected: str | None) -> None:
    found = chosen(message(text("a")), CALL, status=status, incomplete_details=details)
    assert found == ("a", [CHAT_CALL], expected)


def test_usage_stays_verbatim_and_counts_have_the_names_of_chat() -> None:
    assert answer_as_chat(response())["usage"] == USAGE
    found = counts(USAGE)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (30, 7)
    assert found["prompt_tokens_details"]["cached_tokens"] == 20


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_the_final_event_holds_the_response(kind: str) -> None:
    whole = response(message(text("hello")), status=kind)
    assert streamed([created(), said("hel"), said("lo"), event(kind, response=whole)]) == whole


def test_a_final_event_without_output_is_filled_with_what_was_sent() -> None:
    done = event("output_item.done", output_index=0, item=message(text("hello")))
    final = event("completed", response=response())
    assert streamed([created(), done, final]) == response(message(text("hello")))


def test_of_a_stream_cut_off_the_deltas_are_kept() -> None:
    begun = {**CALL, "arguments": ""}
    found = streamed(
        [
            created(),
            event("output_item.added", output_index=0, item=message()),
            said("hel"),
            said("lo"),
            event("output_item.added", output_index=1, item=begun),
            event("function_call_arguments.delta", output_index=1, delta='{"place":'),
            event("function_call_arguments.delta", output_index=1, delta='"Oslo"}'),
        ]
    )
    assert (found["model"], found["status"], found["usage"]) == ("gpt-4o-2024-08-06", "in_progress", None)
    (choice,) = answer_as_chat(found)["choices"]
    assert choice == {"message": {"content": "hello", "tool_calls": [CHAT_CALL]}, "finish_reason": None}


def test_items_are_in_the_order_of_the_output_and_whole_ones_replace_their_deltas() -> None:
    whole = message(text("whole "))
    found = streamed([said("second", at=1), said("wh", at=0), event("output_item.done", output_index=0, item=whole)])
    assert answer_as_chat(found)["choices"][0]["message"]["content"] == "whole second"


def test_a_cut_inside_an_event_loses_that_event_only() -> None:
    final = event("completed", response=response(message(text("hello"))))
    found = streamed([said("hel"), said("lo"), final[:-1]])
    assert (answer_as_chat(found)["choices"][0]["message"]["content"], found["status"]) == ("hello", "in_progress")


def test_an_error_event_ends_nothing() -> None:
    found = streamed([created(), said("hel"), json.dumps({"type": "error", "message": "overloaded"}), "[DONE]"])
    assert (answer_as_chat(found)["choices"][0]["message"]["content"], found["status"]) == ("hel", "in_progress")


@given(pieces=st.lists(st.text(), min_size=1), cut=st.integers(0, 400))
def test_a_prefix_of_a_stream_is_a_prefix_of_the_answer(pieces: list[str], cut: int) -> None:
    answer = "".join(pieces)
    events = [said(piece) for piece in pieces] + [event("completed", response=response(message(text(answer))))]
    whole, kept = "\n".join(events), "\n".join(events)[:cut].split("\n")
    found = answer_as_chat(streamed(kept))["choices"][0]
    assert answer.startswith(found["message"]["content"] or "")
    assert (found["finish_reason"] == "stop") == (cut >= len(whole))


def test_a_request_of_one_text() -> None:
    assert request_as_chat({"input": "hello", "instructions": "Be brief.", "tools": [{"name": "f"}]}) == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "tools": [{"name": "f"}],
    }


def test_a_request_of_items() -> None:
    parts = [{"type": "input_text", "text": "hello"}]
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": parts},
        CALL,
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    assert request_as_chat({"input": items})["messages"] == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [CHAT_CALL]},
        {"role": "tool", "content": "rain"},
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"input": "hi", "previous_response_id": "resp_0"},
        {"input": "hi", "conversation": "conv_0"},
        {"input": "hi", "prompt": {"id": "pmpt_0"}},
        {"input": [{"type": "item_reference", "id": "msg_0"}]},
        {"input": [{"type": "reasoning", "encrypted_content": "x"}]},
        {},
    ],
)
def test_a_prompt_that_cannot_be_seen_whole_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        request_as_chat(body)
