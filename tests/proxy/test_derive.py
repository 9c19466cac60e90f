import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.derive import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Derived, derive
from proxy.tokens import estimator

REQUEST = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]})
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
WORDS = (
    "model messages choices message delta content tool_calls finish_reason usage index function id name arguments "
    "prompt_tokens completion_tokens prompt_tokens_details cached_tokens role tools text prompt input instructions "
    "output type status incomplete_details reason input_tokens output_tokens input_tokens_details response item "
    "output_index call_id format"
)
KEYS = st.sampled_from(WORDS.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)
PATHS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES)
# The values that decide which way a Responses body is read.
KINDS = st.sampled_from(
    [
        "message", "output_text", "function_call", "completed", "incomplete", "response.created", "response.completed",
        "response.output_item.done", "response.output_text.delta", "response.function_call_arguments.delta",
    ]
)  # fmt: skip
TYPED = st.builds(lambda fields, kind: {**fields, "type": kind}, st.dictionaries(KEYS, JSON, max_size=4), KINDS)
RESPONSES_USAGE = {
    "input_tokens": 30, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 37,
}  # fmt: skip


def plain(message: Any, **fields: Any) -> str:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"model": "gpt-4o-2024-08-06", "choices": [choice], "usage": USAGE} | fields)


def stream(*chunks: Any, done: bool = True) -> str:
    events = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks] + ["[DONE]"] * done
    return "".join(f"data: {event}\n\n" for event in events)


def piece(delta: Any, finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]} | fields


def of(response: str, streamed: bool = False, request: str = REQUEST, status: int = 200) -> Derived:
    return derive(CHAT, None, request, status, streamed, response)


def test_a_plain_answer() -> None:
    found = of(plain({"role": "assistant", "content": "hello"}))
    assert (found.task, found.model, found.answer, found.tool_calls) == ("untitled", "gpt-4o", "hello", None)
    assert (found.finish_reason, found.ended) == ("stop", True)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (10, 4, 2)
    assert (json.loads(found.usage or ""), found.usage_source) == (USAGE, "provider")


def test_the_answers_model_stands_in_where_none_was_asked_for() -> None:
    assert of(plain({"content": "x"}), request='{"messages": []}').model == "gpt-4o-2024-08-06"


def test_who_answered_is_told_beside_who_was_asked() -> None:
    whole, streamed = of(plain({"content": "x"})), of(stream(piece({"content": "x"})), True)
    assert [(one.model, one.answered_model) for one in (whole, streamed)] == [
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4o", "m"),
    ]
    unnamed = [of(plain({"content": "x"}, model=model)).answered_model for model in (None, 7, ["gpt-4o"])]
    assert unnamed == [None] * 3
    assert of('{"error": {}}', status=429).answered_model is None


def test_the_task_header_names_the_task() -> None:
    assert derive(CHAT, "triage", REQUEST, 200, False, plain({"content": "x"})).task == "triage"


def test_tool_calls_of_a_plain_answer() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    found = of(plain({"content": None, "tool_calls": calls}))
    assert (found.answer, json.loads(found.tool_calls or "")) == (None, calls)


def test_a_stream_is_put_together() -> None:
    found = of(stream(piece({"role": "assistant"}), piece({"content": "hel"}), piece({"content": "lo"}, "stop")), True)
    assert (found.answer, found.finish_reason, found.ended, found.usage) == ("hello", "stop", True, None)


def test_a_stream_without_done_has_not_ended() -> None:
    found = of(stream(piece({"content": "hel"}), done=False), True)
    assert (found.answer, found.ended) == ("hel", False)


def test_a_stream_cut_inside_a_chunk_has_not_ended() -> None:
    found = of(stream(piece({"content": "hel"}))[:30], True)
    assert (found.answer, found.ended, found.model) == (None, False, "gpt-4o")


def test_tool_call_deltas_are_put_together_by_index() -> None:
    def part(index: int, arguments: str, **fields: str) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": fields["name"]} if fields else {})
        return {"index": index, "function": function} | ({"id": fields["id"]} if fields else {})

    found = of(
        stream(
            piece({"tool_calls": [part(1, "", id="b", name="time")]}),
            piece({"tool_calls": [part(0, '{"pla', id="a", name="weather")]}),
            piece({"tool_calls": [part(1, "{}"), part(0, 'ce": "Oslo"}')]}, "tool_calls"),
        ),
        True,
    )
    assert json.loads(found.tool_calls or "") == [
        {"type": "function", "function": {"name": "weather", "arguments": '{"place": "Oslo"}'}, "id": "a"},
        {"type": "function", "function": {"name": "time", "arguments": "{}"}, "id": "b"},
    ]
    assert (found.answer, found.finish_reason) == (None, "tool_calls")


@pytest.mark.parametrize(
    "chunks",
    [
        [piece({"content": "x"}), {"choices": [], "usage": USAGE}],
        [piece({"content": "x"}, "stop", usage=USAGE)],
        [piece({}, usage=USAGE), piece({"content": "x"}, usage=None)],
    ],
    ids=["a chunk of its own", "the last choice", "the first"],
)
def test_usage_is_taken_from_whichever_chunk_carries_it(chunks: list[Any]) -> None:
    found = of(stream(*chunks), True)
    assert (found.answer, found.prompt_tokens, found.cached_tokens, found.completion_tokens) == ("x", 10, 4, 2)


def test_of_several_choices_the_first_is_taken() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("one", "two")]
    assert of(plain(None, choices=choices)).answer == "one"
    chunks = [piece({"content": "two"}, "length", index=1), piece({"content": "one"}, "stop"), piece({}, "length", 1)]
    found = of(stream(*chunks), True)
    assert (found.answer, found.finish_reason) == ("one", "stop")


def test_line_separators_inside_json_are_content() -> None:
    assert of(stream(piece({"content": "a\u2028b\x85c"})), True).answer == "a\u2028b\x85c"


def test_carriage_returns_and_comments_between_events_are_passed_over() -> None:
    text = ": keep-alive\r\n\r\n" + stream(piece({"content": "a"})).replace("\n", "\r\n")
    assert (of(text, True).answer, of(text, True).ended) == ("a", True)


def test_an_error_has_a_task_and_a_model_and_nothing_else() -> None:
    assert of('{"error": {}}', status=429) == Derived(task="untitled", model="gpt-4o")


def test_other_paths_derive_to_nothing() -> None:
    assert derive("/v1/models", "triage", "", 200, False, "{}") == Derived()


def test_halves_of_a_surrogate_pair_make_a_character_and_one_alone_is_marked() -> None:
    """The log's columns are UTF-8: half a pair would stop the ingest of its whole segment."""
    halves = '{"choices": [{"delta": {"content": "\\ud83d"}}]}', '{"choices": [{"delta": {"content": "\\ude42"}}]}'
    assert of("".join(f"data: {half}\n\n" for half in halves), True).answer == "🙂"
    found = of(plain({"content": "a\ud83d"}), request='{"model": "\\udc00", "messages": []}')
    assert (found.answer, found.model) == ("a\ufffd", "\ufffd")


@pytest.mark.parametrize("count", [-1, 1 << 63, True, 1.5, "7", None, [1]])
def test_a_count_the_log_cannot_hold_is_unknown(count: Any) -> None:
    found = of(plain({"content": "x"}, usage={"prompt_tokens": count, "completion_tokens": 1}))
    assert (found.prompt_tokens, found.completion_tokens) == (None, 1)


def responded(*output: Any, **fields: Any) -> dict[str, Any]:
    head = {"object": "response", "status": "completed", "model": "gpt-4o-2024-08-06", "usage": RESPONSES_USAGE}
    return {**head, "output": list(output), **fields}


def spoken(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def typed(*events: tuple[str, dict[str, Any]]) -> str:
    """The stream of a Responses answer: each event named twice, and no [DONE]."""
    return "".join(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n" for kind, fields in events)


def of_responses(body: str, streamed: bool = False, request: Any = None) -> Derived:
    asked = json.dumps(request or {"model": "gpt-4o", "input": "hello worlds"})
    return derive(RESPONSES, None, asked, 200, streamed, body, estimator())


def test_a_response() -> None:
    found = of_responses(json.dumps(responded({"type": "reasoning"}, spoken("hello"))))
    assert found == Derived(
        task="untitled",
        model="gpt-4o",
        answer="hello",
        finish_reason="stop",
        prompt_tokens=30,
        cached_tokens=20,
        completion_tokens=7,
        usage=json.dumps(RESPONSES_USAGE),
        usage_source="provider",
        answered_model="gpt-4o-2024-08-06",
    )


def test_a_response_that_calls_a_function_is_as_in_chat() -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
    in_chat = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    found = of_responses(json.dumps(responded(call)))
    assert found.tool_calls == of(plain({"content": None, "tool_calls": [in_chat]})).tool_calls
    assert (found.answer, found.finish_reason, found.ended) == (None, "tool_calls", True)


def test_a_response_cut_by_its_limit_has_ended_and_a_failed_one_has_not() -> None:
    limit = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    found = of_responses(json.dumps(responded(spoken("hel"), **limit)))
    assert (found.answer, found.finish_reason, found.ended) == ("hel", "length", True)
    found = of_responses(json.dumps(responded(status="failed", usage=None)))
    assert (found.answer, found.finish_reason, found.ended, found.usage_source) == (None, None, False, None)


def test_a_responses_stream() -> None:
    begun = ("response.created", {"response": responded(status="in_progress", usage=None)})
    deltas = [("response.output_text.delta", {"output_index": 0, "delta": delta}) for delta in ("hello", " worlds")]
    final = ("response.completed", {"response": responded(spoken("hello worlds"))})
    found = of_responses(typed(begun, *deltas, final), True)
    assert (found.answer, found.finish_reason, found.ended) == ("hello worlds", "stop", True)
    assert (found.prompt_tokens, found.completion_tokens, found.usage_source) == (30, 7, "provider")
    cut = of_responses(typed(begun, *deltas), True)
    assert (cut.answer, cut.finish_reason, cut.ended) == ("hello worlds", None, False)
    assert (cut.prompt_tokens, cut.completion_tokens, cut.usage_source) == (1 + 2 + 3 + 3, 2, "estimated")


def test_a_response_whose_prompt_the_provider_holds_is_not_estimated() -> None:
    body = json.dumps(responded(spoken("hello"), usage=None))
    assert of_responses(body).usage_source == "estimated"
    followed = of_responses(body, request={"input": "hello", "previous_response_id": "resp_1"})
    assert (followed.answer, followed.usage_source, followed.prompt_tokens) == ("hello", None, None)


def test_the_task_of_a_responses_request() -> None:
    """Its instructions, wherever they stand before the user, its tools and its output format."""

    def task(**fields: Any) -> str | None:
        return of_responses(json.dumps(responded()), request={"model": "m", "input": "hello", **fields}).task

    developer = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sort mail."}]}
    user = {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    assert task() == "untitled"
    told = task(instructions="Sort mail.")
    assert told == task(instructions="Sort mail.", input="other") == task(input=[developer, user])
    assert told == task(input=[{"role": "system", "content": "Sort mail."}, user, {"type": "reasoning"}])
    assert told == derive(CHAT, None, '{"messages": [{"role": "system", "content": "Sort mail."}]}', 200, True, "").task
    tool = {"type": "function", "name": "move", "parameters": {"type": "object"}}
    schema = {"type": "json_schema", "name": "mail", "schema": {"type": "object"}}
    names = [
        told,
        task(instructions="Sort mail.", input=[developer, user]),
        task(instructions="Sort mail.", tools=[tool]),
        task(instructions="Sort mail.", tools=[{**tool, "name": "delete"}]),
        task(instructions="Sort mail.", text={"format": schema}),
        task(instructions="Sort mail.", text={"format": {**schema, "schema": {"type": "array"}}}),
    ]
    assert len(set(names)) == len(names)
    assert told == task(instructions="Sort mail.", text={"format": {"type": "text"}, "verbosity": "low"})


def test_a_plain_completion() -> None:
    choice = {"index": 0, "text": " a time", "finish_reason": "length", "logprobs": None}
    request = json.dumps({"model": "gpt-3.5-turbo-instruct", "prompt": "hello worlds"})

    def completed(body: str, streamed: bool = False, asked: str = request) -> Derived:
        return derive(COMPLETIONS, None, asked, 200, streamed, body, estimator())

    found = completed(json.dumps({"model": "m", "choices": [choice], "usage": USAGE}))
    assert (found.task, found.model, found.answer) == ("untitled", "gpt-3.5-turbo-instruct", " a time")
    assert (found.finish_reason, found.ended, found.tool_calls) == ("length", True, None)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (10, 4, 2)
    chunks = [
        {"choices": [{**choice, "text": " a", "finish_reason": None}]},
        {"choices": [{**choice, "text": " time"}]},
    ]
    found = completed(stream(*chunks), True)
    assert (found.answer, found.finish_reason, found.ended) == (" a time", "length", True)
    assert (found.prompt_tokens, found.completion_tokens, found.usage_source) == (2, 2, "estimated")
    found = completed(stream(*chunks, done=False), True, '{"prompt": ["one", "two"]}')
    assert (found.answer, found.ended, found.usage_source) == (" a time", False, None)


def test_embeddings_cost_their_prompt_and_answer_nothing() -> None:
    request = json.dumps({"model": "text-embedding-3-small", "input": ["hello", "worlds"]})
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    body = {"object": "list", "data": [{"embedding": [0.5], "index": 0}], "model": "m", "usage": usage}
    found = derive(EMBEDDINGS, None, request, 200, False, json.dumps(body))
    assert found == Derived(
        task="untitled",
        model="text-embedding-3-small",
        prompt_tokens=9,
        completion_tokens=0,
        usage=json.dumps(usage),
        usage_source="provider",
        answered_model="m",
    )
    del body["usage"]
    found = derive(EMBEDDINGS, None, request, 200, False, json.dumps(body), estimator())
    assert (found.completion_tokens, found.usage_source) == (None, None)


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS, RESPONSES])
def test_an_error_on_any_path_has_a_task_and_a_model_and_nothing_else(path: str) -> None:
    assert derive(path, "mail", '{"model": "m"}', 500, False, "{}") == Derived(task="mail", model="m")
    assert derive(f"{path}/", "mail", '{"model": "m"}', 500, False, "{}") == Derived(task="mail", model="m")


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/responses/input_tokens"])
def test_asking_about_a_response_is_not_paid_again(path: str) -> None:
    assert derive(path, None, "", 200, False, json.dumps(responded(spoken("hello")))) == Derived()


def a_token_each(body: Mapping[str, Any], answer: str | None, calls: Sequence[Any]) -> tuple[int, int]:
    return sum(len(turn["role"]) for turn in body.get("messages") or ()), len(answer or "") + len(calls)


def fits_the_log(found: Derived) -> bool:
    texts = (found.task, found.model, found.answer, found.tool_calls, found.finish_reason, found.usage)
    counts = (found.prompt_tokens, found.cached_tokens, found.completion_tokens)
    return all(text is None or text.encode() is not None for text in texts) and all(
        count is None or 0 <= count < 1 << 63 for count in counts
    )


@given(request=st.text(), response=st.text(), streamed=st.booleans())
def test_no_text_raises(request: str, response: str, streamed: bool) -> None:
    assert fits_the_log(of(response, streamed, request))
    assert fits_the_log(of(f"data: {response}\n\n", True, request))


@given(request=JSON, message=JSON, usage=JSON, streamed=st.booleans())
def test_no_json_raises(request: Any, message: Any, usage: Any, streamed: bool) -> None:
    asked = json.dumps(request)
    assert fits_the_log(of(json.dumps(message), False, asked))
    assert fits_the_log(of(plain(message, usage=usage), False, json.dumps({"model": message, "messages": request})))
    chunk = {"model": usage, "choices": [{"delta": message, "finish_reason": request}], "usage": usage}
    assert fits_the_log(of("data: " + json.dumps(chunk), True, asked))


@given(path=st.sampled_from(PATHS), request=st.binary(), response=st.binary(), streamed=st.booleans())
def test_no_bytes_raise(path: str, request: bytes, response: bytes, streamed: bool) -> None:
    asked, answered = (body.decode("utf-8", "replace") for body in (request, response))
    for body in (answered, f"data: {answered}\n\n"):
        assert fits_the_log(derive(path, None, asked, 200, streamed, body, a_token_each))


@given(path=st.sampled_from(PATHS), request=JSON, item=JSON | TYPED, usage=JSON, streamed=st.booleans())
def test_no_json_raises_on_any_path(path: str, request: Any, item: Any, usage: Any, streamed: bool) -> None:
    bodies = [
        item,
        responded(item, usage=usage),
        responded({"type": "message", "content": [item, item]}, status=usage, incomplete_details=item),
        {"choices": [item], "usage": usage},
        {"choices": [{"text": item, "delta": usage}], "model": usage, "usage": item},
    ]
    events = [
        item,
        {"type": "response.output_item.added", "output_index": usage, "item": item},
        {"type": "response.output_text.delta", "output_index": usage, "delta": item},
        {"type": "response.completed", "response": responded(item, usage=usage)},
    ]
    asks = [{"input": request}, {"prompt": request}, {"input": "hi", "instructions": request}, request]
    texts = [json.dumps(body) for body in bodies] if not streamed else [stream(*events), stream(*events[:3], *bodies)]
    for asked in map(json.dumps, asks):
        for text in texts:
            assert fits_the_log(derive(path, None, asked, 200, streamed, text, a_token_each))
