import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.derive import CHAT, Derived, derive

REQUEST = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]})
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
WORDS = (
    "model messages choices message delta content tool_calls finish_reason usage index function id name arguments "
    "prompt_tokens completion_tokens prompt_tokens_details cached_tokens role tools"
)
KEYS = st.sampled_from(WORDS.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


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
