import json
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.replay import _pieces, create_replay, prompt_key
from proxy.tokens import load_encoding
from proxy.traffic_file import Row
from tests.servers import serving

TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
ARGUMENTS = '{"place":"Oslo fjord","days":3}'
CALLS = tuple(
    {"id": f"call_{index}", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    for index in range(2)
)
HELLO = "Good  morning,\nwörld! 🙂 "


def ask(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text})


ROWS = (
    Row(ask("greet"), HELLO, None, "gpt-4o-2024-08-06", None),
    Row(ask("dice"), "one", None, "gpt-4o-2024-08-06", None),
    Row(ask("dice"), "two", None, "gpt-4o-2024-08-06", None),
    Row(ask("weather"), None, CALLS, "gpt-4o-2024-08-06", TOOLS),
    Row(ask("weather"), "no tools, no call", None, "gpt-4o-2024-08-06", None),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_replay(ROWS, key="sk-right")) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="sk-right", max_retries=0) as made:
        yield made


def stream(client: openai.OpenAI, text: str, **options: Any) -> list[Any]:
    with client.chat.completions.create(model="gpt-4o", messages=ask(text), stream=True, **options) as chunks:
        return list(chunks)


def joined(chunks: Sequence[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_plain(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=ask("greet"))
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "gpt-4o-mini", "fp_replay")
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert (choice.message.content, choice.message.refusal, choice.message.tool_calls) == (HELLO, None, None)


def test_usage_counts_the_tokens_of_gpt_4o(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="gpt-4o", messages=ask("greet")).usage
    assert usage is not None
    count = load_encoding().encode_ordinary
    parts = ("system", "Be brief.", "user", "greet")
    assert usage.prompt_tokens == sum(len(count(part)) for part in parts) + 2 * 3 + 3
    assert usage.completion_tokens == len(count(HELLO)) > 4
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_stream_without_usage(client: openai.OpenAI) -> None:
    chunks = stream(client, "greet")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert joined(chunks) == HELLO
    assert len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {(chunk.id, chunk.object, chunk.model) for chunk in chunks} == {
        (chunks[0].id, "chat.completion.chunk", "gpt-4o")
    }
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


def test_stream_with_usage(client: openai.OpenAI) -> None:
    *chunks, last = stream(client, "greet", stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == client.chat.completions.create(model="gpt-4o", messages=ask("greet")).usage
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)
    assert joined(chunks) == HELLO


def test_a_stream_ends_on_done(client: openai.OpenAI) -> None:
    request = client.chat.completions.with_streaming_response
    with request.create(model="gpt-4o", messages=ask("greet"), stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = response.text().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_tool_calls_plain(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=ask("weather"), tools=TOOLS)
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    assert tuple(call.model_dump() for call in choice.message.tool_calls) == CALLS


def test_tool_calls_streamed(client: openai.OpenAI) -> None:
    chunks = stream(client, "weather", tools=TOOLS)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    for index in range(2):
        opening, *pieces = [delta for delta in deltas if delta.index == index]
        assert (opening.id, opening.type, opening.function.name) == (f"call_{index}", "function", "weather")
        assert len(pieces) > 2
        assert "".join(piece.function.arguments for piece in pieces) == ARGUMENTS
        assert all(piece.id is None and piece.function.name is None for piece in pieces)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert joined(chunks) == ""


def test_the_same_prompt_without_tools_is_another_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=ask("weather"))
    assert answer.choices[0].message.content == "no tools, no call"


def test_two_choices(client: openai.OpenAI) -> None:
    one = client.chat.completions.create(model="gpt-4o", messages=ask("greet"))
    two = client.chat.completions.create(model="gpt-4o", messages=ask("greet"), n=2)
    assert [(choice.index, choice.message.content) for choice in two.choices] == [(0, HELLO), (1, HELLO)]
    assert one.usage is not None
    assert two.usage is not None
    assert two.usage.completion_tokens == 2 * one.usage.completion_tokens
    assert two.usage.prompt_tokens == one.usage.prompt_tokens
    chunks = stream(client, "greet", n=2)
    assert joined(chunks, 0) == joined(chunks, 1) == HELLO


def test_repeated_prompts_are_answered_in_recorded_order_round_and_round() -> None:
    with serving(create_replay(ROWS)) as base, openai.OpenAI(base_url=base, api_key="any", max_retries=0) as client:
        answers = [client.chat.completions.create(model="gpt-4o", messages=ask("dice")) for _ in range(3)]
    assert [answer.choices[0].message.content for answer in answers] == ["one", "two", "one"]


def test_delays_change_nothing_but_time() -> None:
    app = create_replay(ROWS, latency=0.01, chunk_delay=0.001)
    with serving(app) as base, openai.OpenAI(base_url=base, api_key="any", max_retries=0) as client:
        assert joined(stream(client, "greet")) == HELLO


def test_a_request_can_ask_to_wait(client: openai.OpenAI) -> None:
    def wait(seconds: str) -> Any:
        late = {"x-replay-latency": seconds}
        return client.chat.completions.create(model="gpt-4o", messages=ask("greet"), extra_headers=late, timeout=1)

    assert wait("0.01").choices[0].message.content == HELLO
    with pytest.raises(openai.APITimeoutError):
        wait("20")
    for wrong in ("-1", "601", "nan", "soon"):
        with pytest.raises(openai.BadRequestError, match="0 to 600 seconds"):
            wait(wrong)


def test_an_unknown_prompt_is_never_invented(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not in the recording") as caught:
        client.chat.completions.create(model="gpt-4o", messages=ask("surprise me"))
    assert caught.value.code == "unknown_prompt"


def test_a_wrong_key(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
        (418, openai.BadRequestError),
    ],
)
def test_injected_faults(client: openai.OpenAI, status: int, error: type[openai.APIStatusError]) -> None:
    fault = {"x-replay-status": str(status)}
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="gpt-4o", messages=ask("greet"), extra_headers=fault)
    assert caught.value.status_code == (400 if status == 418 else status)
    assert caught.value.response.headers.get("retry-after") == ("7" if status == 429 else None)
    assert caught.value.type is not None


GOOD = {"model": "gpt-4o", "messages": ask("greet")}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "could not parse the JSON"),
        (b"[]", "model parameter"),
        ({"messages": ask("greet")}, "model parameter"),
        ({"model": "gpt-4o"}, "'messages' must be"),
        ({**GOOD, "messages": ["hi"]}, "'messages' must be"),
        ({**GOOD, "messages": [{"role": "user", "content": 7}]}, "'content' of a message"),
        ({**GOOD, "messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "'tool_calls' of a message"),
        ({**GOOD, "n": 0}, "'n' must be"),
        ({**GOOD, "n": True}, "'n' must be"),
        ({**GOOD, "stream_options": "usage"}, "'stream_options' must be"),
    ],
)
def test_a_bad_request_is_a_400(client: openai.OpenAI, body: Any, reason: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(openai.BadRequestError, match=reason):
        client.post("/chat/completions", cast_to=object, content=content)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["gpt-4o", "gpt-4o-2024-08-06"]


def test_rows_with_images_are_refused_at_start() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    with pytest.raises(BadInput, match="row 2"):
        create_replay([ROWS[0], Row((image,), "a cat", None, "gpt-4o", None)])


def test_prompt_key_ignores_spelling_and_ids_but_not_meaning() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert prompt_key(parts, []) == prompt_key([{"content": "hi", "role": "user"}], None)
    assert prompt_key(parts, None) != prompt_key([{"role": "system", "content": "hi"}], None)
    assert prompt_key(parts, None) != prompt_key(parts, TOOLS)
    first, second = ([{"role": "assistant", "content": None, "tool_calls": [call]}] for call in CALLS)
    assert prompt_key(first, None) == prompt_key(second, None)
    other = {"function": {"name": "weather", "arguments": "{}"}}
    assert prompt_key(first, None) != prompt_key([{"role": "assistant", "content": None, "tool_calls": [other]}], None)


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(_pieces(text)) == text
