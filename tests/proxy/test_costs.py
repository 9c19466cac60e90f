import gzip
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.costs import Bound, Sizes, bound_of, fields_of, rate_need, used
from proxy.derive import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from proxy.errors import Refused
from proxy.exchange import Exchange
from proxy.limits import MOST, NANO, Need, Used
from proxy.tokens import estimator

SIZES = Sizes(context=1000, answer=100)
TURNS = [{"role": "user", "content": "hi"}]


def price(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
    """A dollar a token of the prompt, a dime where cached; a thousand a token of the answer."""
    if model == "odd":
        return math.nan
    if model != "m" or prompt is None or completion is None:
        return None
    return prompt - 0.9 * (cached or 0) + 1000.0 * completion


def bound(path: str = CHAT, **fields: Any) -> Bound:
    body = json.dumps({"model": "m", **fields}).encode()
    return bound_of(path, fields_of(body), len(body), price, lambda _: SIZES)


@pytest.mark.parametrize(
    ("path", "fields", "completion"),
    [
        (CHAT, {"messages": TURNS}, 100),
        (CHAT, {"messages": TURNS, "max_tokens": 7}, 7),
        (CHAT, {"messages": TURNS, "max_tokens": 7, "max_completion_tokens": 9}, 9),
        (CHAT, {"messages": TURNS, "max_output_tokens": 1}, 100),
        (CHAT, {"messages": TURNS, "max_tokens": 7, "n": 3}, 21),
        (CHAT, {"messages": TURNS, "MAX_TOKENS": 7, "N": "3"}, 21),
        (CHAT, {"messages": TURNS, "max_tokens": 500}, 500),
        (CHAT, {"messages": TURNS, "max_tokens": None, "n": None}, 100),
        (CHAT, {"messages": TURNS, "max_tokens": -5, "n": [2]}, 100),
        (CHAT, {"messages": TURNS, "max_tokens": True}, 100),
        (CHAT, {"messages": TURNS, "max_tokens": 1e300}, MOST),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 5, "best_of": 4}, 20),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 5, "n": 2}, 20),
        (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 5}, 5),
        (RESPONSES, {"input": "a", "max_output_tokens": 5, "max_tokens": 1}, 5),
        (EMBEDDINGS, {"input": ["a", "b"]}, 0),
    ],
)
def test_answers_are_bounded_by_what_was_asked(path: str, fields: dict[str, Any], completion: int) -> None:
    found = bound(path, **fields)
    assert found.completion == completion
    assert found.prompt == len(json.dumps({"model": "m", **fields}))
    assert found.need.nano == min((found.prompt + 1000 * completion) * NANO, MOST)


@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), st.text(max_size=40)), max_size=6))
def test_the_bytes_of_a_text_are_never_fewer_than_its_tokens(turns: list[tuple[str, str]]) -> None:
    asked = {"messages": [{"role": role, "content": text} for role, text in turns]}
    compact = json.dumps({"model": "m", **asked}, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
    tokens, _ = COUNT(json.loads(json.dumps(asked)), None, ())
    assert tokens <= len(compact)


COUNT = estimator()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}),
        (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}),
        (CHAT, {"messages": {"role": "user"}}),
        (RESPONSES, {"input": "a", "previous_response_id": "r"}),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "i"}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]}),
        (RESPONSES, {"prompt": {"id": "p"}}),
        (EMBEDDINGS, {"input": [{"type": "image", "image": "u"}]}),
    ],
)
def test_what_is_only_pointed_to_is_bounded_by_the_context(path: str, fields: dict[str, Any]) -> None:
    assert bound(path, **fields).prompt == SIZES.context


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "unknown"},
        {"model": "odd"},
        {"model": None},
        {"models": ["other"]},
        {"background": True},
        {"audio": {"voice": "v"}},
        {"web_search_options": {"a": 1}},
        {"service_tier": "priority"},
        {"tools": [{"type": "web_search"}]},
        {"tools": {"type": "function"}},
    ],
)
def test_what_cannot_be_known_beforehand_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        bound(messages=TURNS, **{"max_tokens": 1, **fields})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'{"model":"m","model":"n"}',
        b'{"model":"m","MODEL":"n"}',
        b"1" * 5000,
    ],
)
def test_what_cannot_be_read_for_certain_is_not_read(body: bytes) -> None:
    assert fields_of(body) is None
    with pytest.raises(Refused):
        bound_of(CHAT, None, len(body), price, lambda _: SIZES)


def over(status: int = 200, response: bytes = b"", **more: Any) -> Exchange:
    request = json.dumps({"model": "m", "messages": TURNS, "max_tokens": 50}).encode()
    return Exchange("i", 0.0, "POST", CHAT, request=request, status=status, response=response, **more)


ASKED = bound(messages=TURNS, max_tokens=50)
ANSWER = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
WHOLE = json.dumps({**ANSWER, "usage": USAGE}).encode()
GZIP = [(b"Content-Encoding", b"gzip")]
PROMPT = ASKED.prompt * NANO
TOKENS = ASKED.need.tokens


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        (over(response=WHOLE), Used(10, round(2004.4 * NANO))),
        (over(response=gzip.compress(WHOLE), response_headers=GZIP), Used(10, 2004_400_000_000)),
        (over(response=WHOLE, served_by="student"), Used()),
        (over(429, b'{"error":{}}'), Used()),
        (over(502), Used()),
        (over(0, error="client hung up"), Used(TOKENS, PROMPT, True)),
        (over(response=json.dumps(ANSWER).encode()), Used(TOKENS, PROMPT + 5000 * NANO, True)),
        (over(response=json.dumps({**ANSWER, "usage": {"prompt_tokens": 0, "completion_tokens": 0}}).encode()),
         Used(TOKENS, PROMPT + 5000 * NANO, True)),
        (over(response=b""), Used(TOKENS, PROMPT, True)),
        (over(response=b"\xff\0{" * 7), Used(TOKENS, PROMPT + 35_000 * NANO, True)),
        (over(response=b"no json at all" * 100), Used(TOKENS, PROMPT + 50_000 * NANO, True)),
    ],
)  # fmt: skip
def test_what_an_exchange_did_cost(exchange: Exchange, expected: Used) -> None:
    assert used(exchange, ASKED, ASKED.need, price) == expected
    tokens = used(exchange, None, ASKED.need, price)
    assert (tokens.tokens, tokens.nano) == (expected.tokens, 0)


def test_a_stream_cut_off_costs_the_prompt_and_what_came() -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"four"}}]}\n\n'
    for cut in (event * 3, event * 3 + event[:20], event * 3 + b"data: "):
        found = used(over(response=cut, stream=True, partial=True), ASKED, ASKED.need, price)
        assert found == Used(TOKENS, PROMPT + 12_000 * NANO, True)


def test_a_provider_that_counts_without_end_overflows_nothing() -> None:
    huge = json.dumps({**ANSWER, "usage": {"prompt_tokens": 2**62, "completion_tokens": 2**62}}).encode()
    assert used(over(response=huge), ASKED, ASKED.need, price) == Used(MOST, MOST)


@given(
    st.binary(max_size=200),
    st.binary(max_size=200),
    st.booleans(),
    st.sampled_from([CHAT, MESSAGES, RESPONSES, "/v1/x"]),
)
def test_no_body_makes_it_raise_or_cost_nothing(request: bytes, response: bytes, stream: bool, path: str) -> None:
    exchange = Exchange("i", 0.0, "POST", path, request=request, status=200, response=response, stream=stream)
    assert used(exchange, ASKED, ASKED.need, price).nano > 0


def test_a_message_is_bounded_by_what_writing_all_of_its_prompt_to_the_cache_costs() -> None:
    body = json.dumps({"model": "m", "messages": TURNS, "max_tokens": 7})
    found = bound(MESSAGES, messages=TURNS, max_tokens=7)
    assert (found.prompt, found.completion) == (2 * (len(body) + 1000), 7)
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "wet"}]}
    called = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1]}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = [{"role": "user", "content": [result, {**result, "content": "dry"}]}, {"role": "assistant", "content": [
        thought, called, {"type": "redacted_thinking", "data": "x"}]}]  # fmt: skip
    tools = [{"name": "f", "input_schema": {}}, {"type": "custom", "name": "g", "input_schema": {}}]
    assert bound(MESSAGES, messages=turns, max_tokens=7, tools=tools, service_tier="standard_only").prompt < 2 * 2000
    image = {"type": "image", "source": {"type": "url", "url": "u"}}
    for part in (image, {**result, "content": [image]}, {**result, "content": [result]}, {"type": "document"}):
        assert bound(MESSAGES, messages=[{"role": "user", "content": [part]}], max_tokens=7).prompt == 2 * 2000


@pytest.mark.parametrize(
    "fields",
    [
        {"service_tier": "priority"},
        {"speed": "fast"},
        {"inference_geo": "us"},
        {"mcp_servers": [{"type": "url"}]},
        {"container": "c"},
        {"context_management": {"edits": []}},
        {"tools": [{"type": "web_search_20260318", "name": "web_search"}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
    ],
)
def test_a_message_whose_cost_cannot_be_known_beforehand_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        bound(MESSAGES, messages=TURNS, max_tokens=1, **fields)


def message(usage: Any, **more: Any) -> Exchange:
    found = over(response=json.dumps({"content": [], "stop_reason": "end_turn", "usage": usage}).encode(), **more)
    found.path = MESSAGES
    return found


def test_what_a_message_did_cost() -> None:
    most = bound(MESSAGES, messages=TURNS, max_tokens=50)
    counted = {"input_tokens": 8, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 4, "output_tokens": 2}
    assert used(message(counted), most, most.need, price) == Used(24, 2014 * NANO)  # 8, a tenth of 10, 1.25 times 4
    assert used(message({**counted, "speed": "fast"}), most, most.need, price) == Used(24, most.need.nano, True)
    events = (
        {"type": "message_start", "message": {"usage": {**counted, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "so"}},
    )
    cut = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    begun = message(None, stream=True, partial=True)
    begun.response = cut
    assert used(begun, most, most.need, price) == Used(most.need.tokens, (most.prompt + 50_000) * NANO, True)


def test_rates_take_an_estimate() -> None:
    assert rate_need(CHAT, {"max_tokens": 10}, 400) == Need(110)
    assert rate_need(CHAT, None, 400) == Need(1100)
    assert rate_need(EMBEDDINGS, {}, 400) == Need(100)


def test_the_model_that_was_asked_in_the_end_is_priced() -> None:
    exchange = replace(over(response=WHOLE), request=b'{"model":"dear"}')

    def by_model(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float | None:
        return {"m": 1.0, "dear": 5.0}.get(model or "")

    assert used(exchange, ASKED, ASKED.need, by_model).nano == 5 * NANO
    unpriced = replace(exchange, request=b'{"model":"new"}')
    assert used(unpriced, ASKED, ASKED.need, by_model) == Used(10, ASKED.need.nano, True)
    assert used(replace(exchange, request=b"?"), ASKED, ASKED.need, by_model).nano == NANO
