import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.derive import CHAT, MESSAGES, Derived, derive
from proxy.messages import answer_as_chat, counts, prompt_to_pay, streamed
from proxy.tokens import estimator

USAGE = {
    "input_tokens": 9, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 20, "output_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 0},
    "service_tier": "standard", "server_tool_use": None, "inference_geo": "not_available",
}  # fmt: skip
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Åre"}}
CHAT_CALL = {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Åre"}'}}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
ASKED: dict[str, Any] = {
    "model": "claude-x", "max_tokens": 16, "system": "Sort mail.", "messages": [{"role": "user", "content": "hi"}],
}  # fmt: skip


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def message(*content: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x-2026", "content": list(content),
        "stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE,
    } | fields  # fmt: skip


def begun() -> list[dict[str, Any]]:
    usage = {**USAGE, "output_tokens": 1}
    start = {"type": "message_start", "message": message(stop_reason=None, usage=usage)}
    return [start, {"type": "ping"}, block(0, text(""))]


def block(index: int, content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def said(value: str, index: int = 0) -> dict[str, Any]:
    return delta(index, "text_delta", text=value)


def ending(reason: str = "end_turn", **usage: Any) -> list[dict[str, Any]]:
    counted = {"output_tokens": 7, "cache_read_input_tokens": None, **usage}
    stop = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": counted}
    return [{"type": "content_block_stop", "index": 0}, stop, {"type": "message_stop"}]


def lines(*events: Any) -> list[str]:
    return [json.dumps(event, ensure_ascii=False) for event in events]


def stream(*events: Any) -> str:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def of(response: str, streams: bool = False, asked: Any = ASKED, estimate: bool = True) -> Derived:
    return derive(MESSAGES, None, json.dumps(asked), 200, streams, response, estimator() if estimate else None)


@pytest.mark.parametrize(
    ("content", "reason", "expected"),
    [
        ([text("hel"), text("lo")], "end_turn", ("hello", [], "stop")),
        ([THOUGHT, text("hello")], "stop_sequence", ("hello", [], "stop")),
        ([text("")], "max_tokens", ("", [], "length")),
        ([CALL], "tool_use", (None, [CHAT_CALL], "tool_calls")),
        ([text("Let me see."), CALL], "tool_use", ("Let me see.", [CHAT_CALL], "tool_calls")),
        ([], "refusal", (None, [], "content_filter")),
        ([{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}], "pause_turn",
         (None, [], "pause_turn")),
        ([text("a")], None, ("a", [], None)),
    ],
)  # fmt: skip
def test_blocks_become_one_message(content: list[Any], reason: Any, expected: Any) -> None:
    (choice,) = answer_as_chat(message(*content, stop_reason=reason))["choices"]
    assert (choice["message"]["content"], choice["message"]["tool_calls"], choice["finish_reason"]) == expected


def test_a_stream_is_the_message_it_builds() -> None:
    events = [
        *begun(), said("He"), said("llo"),
        block(1, {"type": "thinking", "thinking": "", "signature": ""}), delta(1, "thinking_delta", thinking="hm"),
        block(2, {**CALL, "input": {}}), delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"place": '), delta(2, "input_json_delta", partial_json='"Åre"}'),
        block(3, {**CALL, "input": {}}), *ending("tool_use"),
    ]  # fmt: skip
    found = streamed(lines(*events))
    empty = {**CHAT_CALL, "function": {"name": "weather", "arguments": "{}"}}
    assert answer_as_chat(found) == {
        "model": "claude-x-2026",
        "choices": [
            {"message": {"content": "Hello", "tool_calls": [CHAT_CALL, empty]}, "finish_reason": "tool_calls"},
        ],
        "usage": USAGE,
    }


@given(pieces=st.lists(st.text(), min_size=1), cut=st.integers(0, 1500))
def test_a_prefix_of_a_stream_is_a_prefix_of_the_answer(pieces: list[str], cut: int) -> None:
    first, *others = lines(*begun(), *(said(piece) for piece in pieces), *ending())
    whole = "\n".join(others)
    (found,) = answer_as_chat(streamed([first, *whole[:cut].split("\n")]))["choices"]
    assert "".join(pieces).startswith(found["message"]["content"] or "")
    assert (found["finish_reason"] == "stop") == (cut >= whole.index('\n{"type": "message_stop"}'))


def test_the_tokens_of_a_prompt_are_counted_together() -> None:
    found = counts(USAGE)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (33, 7)
    assert found["prompt_tokens_details"] == {"cached_tokens": 20}
    assert counts({"input_tokens": 3, "output_tokens": 1})["prompt_tokens"] == 3
    assert counts({"output_tokens": 1})["prompt_tokens"] is None
    assert counts({"input_tokens": 3, "cache_read_input_tokens": "4"})["prompt_tokens"] is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, 100),
        ({}, 100),
        ({"prompt_tokens": 100, "speed": 77}, 100),
        ({"input_tokens": 100}, 100),
        (USAGE, 101),
        ({**USAGE, "cache_creation_input_tokens": 5}, 102),
        ({"prompt_tokens": 100, "cache_creation_input_tokens": 40}, 110),
        ({"cache_creation_input_tokens": 40, "cache_creation": {"ephemeral_1h_input_tokens": 40}}, 140),
        ({"cache_creation_input_tokens": 40, "cache_creation": {"ephemeral_1h_input_tokens": 20}}, 125),
        ({**USAGE, "server_tool_use": {"web_search_requests": 0}}, 101),
        ({**USAGE, "server_tool_use": {"web_search_requests": 1}}, None),
        ({**USAGE, "iterations": [{"type": "message"}]}, 101),
        ({**USAGE, "iterations": [{"type": "message"}, {"type": "compaction"}]}, None),
        ({**USAGE, "service_tier": "priority"}, None),
        ({**USAGE, "speed": "fast"}, None),
        ({**USAGE, "inference_geo": "us"}, None),
        ({**USAGE, "cache_creation_input_tokens": "5"}, None),
        ({**USAGE, "cache_creation_input_tokens": -5000}, None),
        ({**USAGE, "cache_creation_input_tokens": 1 << 66}, None),
        ([], None),
    ],
)
def test_writing_the_cache_costs_more_and_what_cannot_be_seen_has_no_price(usage: Any, expected: int | None) -> None:
    assert prompt_to_pay(100, None if usage is None else json.dumps(usage)) == expected
    assert prompt_to_pay(None, json.dumps(USAGE)) is None


@given(
    prompt=st.none() | st.integers(0, (1 << 63) - 1),
    usage=st.dictionaries(
        st.sampled_from([*USAGE, "iterations", "speed"]),
        st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=1)
        | st.dictionaries(st.just("ephemeral_1h_input_tokens"), st.integers() | st.floats()),
    ),
)  # fmt: skip
def test_whatever_a_provider_counts_fits_the_log(prompt: int | None, usage: Any) -> None:
    found = prompt_to_pay(prompt, json.dumps(usage))
    assert found is None or (prompt is not None and prompt <= found < 1 << 63)


def test_a_plain_message_is_derived_as_chat_is() -> None:
    found = of(json.dumps(message(text("hello"), CALL, stop_reason="tool_use")))
    assert found == Derived(
        task=derive(CHAT, None, '{"messages": [{"role": "system", "content": "Sort mail."}]}', 200, False, "").task,
        model="claude-x",
        answer="hello",
        tool_calls=json.dumps([CHAT_CALL]),
        finish_reason="tool_calls",
        prompt_tokens=33,
        cached_tokens=20,
        completion_tokens=7,
        usage=json.dumps(USAGE),
        usage_source="provider",
        answered_model="claude-x-2026",
    )
    assert derive(f"{MESSAGES}/", "mail", json.dumps(ASKED), 529, False, "{}") == Derived(task="mail", model="claude-x")
    assert derive(f"{MESSAGES}/count_tokens", None, json.dumps(ASKED), 200, False, '{"input_tokens":9}') == Derived()


def test_a_stream_has_the_last_counts_of_its_events() -> None:
    found = of(stream(*begun(), said("hello"), *ending(input_tokens=10)), True)
    assert (found.answer, found.finish_reason, found.ended) == ("hello", "stop", True)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (34, 20, 7)
    assert (json.loads(found.usage or ""), found.usage_source) == ({**USAGE, "input_tokens": 10}, "provider")


def test_of_a_stream_cut_off_the_answer_is_estimated_and_the_prompt_is_not() -> None:
    events = [*begun(), said("hello"), said(" worlds of"), said(" water")]
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    for cut in (stream(*events), stream(*events) + 'event: content_bl\ndata: {"ty', stream(*events, failed)):
        found = of(cut, True)
        assert (found.answer, found.finish_reason, found.ended) == ("hello worlds of water", None, False)
        assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (33, 20, 4)
        assert found.usage_source == "estimated"
    found = of(stream(*begun()), True)
    assert (found.prompt_tokens, found.completion_tokens, found.ended) == (33, 1, False)
    found = of(stream(*events), True, estimate=False)
    assert (found.prompt_tokens, found.completion_tokens) == (33, None)
    found = of("", True)
    assert (found.model, found.prompt_tokens, found.usage_source, found.ended) == ("claude-x", None, None, False)


def test_its_task_is_that_of_instructions_tools_and_format() -> None:
    def task(**fields: Any) -> str | None:
        return of(json.dumps(message(text("a"))), asked={**ASKED, **fields}).task

    tool = {"name": "move", "description": "Move mail.", "input_schema": {"type": "object"}}
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    names = [
        task(),
        task(system="Write poems."),
        task(tools=[tool]),
        task(tools=[{**tool, "input_schema": {"type": "array"}}]),
        task(output_config={"format": schema}),
    ]
    assert len(set(names)) == len(names)
    assert task() == task(system=[{"type": "text", "text": "Sort mail.", "cache_control": {"type": "ephemeral"}}])
    assert task() == task(messages=[{"role": "user", "content": [text("bye")]}], tools=[])
    chat = {"messages": [{"role": "system", "content": "Sort mail."}], "tools": [{"type": "function", "function": {
        "name": "move", "description": "Move mail.", "parameters": {"type": "object"}}}]}  # fmt: skip
    assert task(tools=[tool]) == derive(CHAT, None, json.dumps(chat), 200, False, "").task
