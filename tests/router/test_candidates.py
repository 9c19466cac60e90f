import json
import math
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.deciding import Answer, CandidateFailed
from router.candidates import Reply, _events, _plain, answer, teacher_only
from router.policy import Route
from router.prompt import line_hash
from tests.router.conftest import Engine, Hosted, chat, route_to
from tests.servers import free_port, serving

GOOD: dict[str, Any] = {
    "choices": [
        {"message": {"content": "billing"}, "finish_reason": "stop", "logprobs": {"content": [{"logprob": -0.1}]}}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}


def choice(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "choices": [{**GOOD["choices"][0], **changes}]}


MALFORMED: dict[str, Any] = {
    "no JSON": b"<html>",
    "nothing": b"",
    "not UTF-8": b"\xff\xfe\xff",
    "a list": b"[]",
    "null": b"null",
    "no choices": b'{"choices": []}',
    "no message": choice(message=None),
    "no probabilities": choice(logprobs=None),
    "content that is no text": choice(message={"content": [{"type": "text", "text": "billing"}]}),
    "a probability that is no number": choice(logprobs={"content": [{"logprob": "high"}]}),
    "a probability beyond numbers": choice(logprobs={"content": [{"logprob": 1e308}, {"logprob": 1e308}]}),
    "infinities that cancel": choice(logprobs={"content": [{"logprob": float("inf")}, {"logprob": float("-inf")}]}),
    "usage that is none": {**GOOD, "usage": ["many"]},
    "counts that are none": {**GOOD, "usage": {"completion_tokens": "many"}},
}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": chat("where is my invoice?")} | fields


async def asked(engine: Engine, fields: dict[str, Any] | None = None, **route: Any) -> Answer:
    with serving(engine.app) as url:
        return await asked_at(route_to(url, **route), body(**(fields or {})))


async def asked_at(route: Route, request: dict[str, Any]) -> Answer:
    async with aiohttp.ClientSession() as session:
        return await answer(session, route, request)


def chunks(sent: Answer) -> list[ChatCompletionChunk]:
    *events, done, rest = sent.body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [ChatCompletionChunk.model_validate_json(event.removeprefix("data: "), strict=True) for event in events]


async def test_a_plain_answer_is_a_chat_completion(engine: Engine) -> None:
    sent = await asked(engine)
    read = ChatCompletion.model_validate_json(sent.body, strict=True)
    assert (read.choices[0].message.content, read.choices[0].finish_reason) == ("billing", "stop")
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.usage.total_tokens) == (9, 2, 11)
    assert read.model == "gpt-4o"
    assert (sent.content_type, sent.stream) == (b"application/json", False)
    assert sent.confidence == pytest.approx(0.9)


async def test_a_streamed_answer_is_chunks_without_usage(engine: Engine) -> None:
    sent = await asked(engine, {"stream": True})
    read = chunks(sent)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in read) == "billing"
    assert [chunk.choices[0].finish_reason for chunk in read] == [None, None, "stop"]
    assert read[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in read}) == 1
    assert b"usage" not in sent.body
    assert sent.stream
    assert sent.content_type.startswith(b"text/event-stream")


async def test_usage_is_a_last_chunk_without_choices_for_who_asks(engine: Engine) -> None:
    *others, last = chunks(await asked(engine, {"stream": True, "stream_options": {"include_usage": True}}))
    assert (last.choices, last.usage and last.usage.total_tokens) == ([], 11)
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in others)


async def test_the_student_is_asked_greedily_without_the_fixed_instructions(engine: Engine) -> None:
    await asked(engine, {"temperature": 1.5}, static=(line_hash("Say which queue."),))
    assert engine.asked == [
        {
            "model": "student-1",
            "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "where is my invoice?"}],
            "temperature": 0,
            "max_tokens": 16,
            "logprobs": True,
        }
    ]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_longer_than_the_client_allows_does_not_go_out(engine: Engine, limit: str) -> None:
    with pytest.raises(CandidateFailed, match="longer than the client allows"):
        await asked(engine, {limit: 1})
    assert (await asked(engine, {limit: 2})).confidence == pytest.approx(0.9)


async def test_an_unsure_answer_says_how_sure_it_was(engine: Engine) -> None:
    with pytest.raises(CandidateFailed, match=r"^unsure$") as failed:
        await asked(engine, threshold=0.91)
    assert failed.value.confidence == pytest.approx(0.9)
    assert (await asked(engine, threshold=None)).confidence == pytest.approx(0.9)


async def test_what_is_compared_with_the_threshold_is_calibrated(engine: Engine) -> None:
    knots = ((0.5, 0.2), (0.9, 0.6))
    with pytest.raises(CandidateFailed, match=r"^unsure$") as failed:
        await asked(engine, threshold=0.61, calibration=knots)
    assert failed.value.confidence == pytest.approx(0.6, abs=1e-3)
    assert (await asked(engine, threshold=0.59, calibration=knots)).confidence == failed.value.confidence


async def test_an_answer_outside_the_format_does_not_go_out(engine: Engine) -> None:
    engine.say = lambda text: ("somewhere else", 1.0)
    with pytest.raises(CandidateFailed, match="format") as failed:
        await asked(engine)
    assert failed.value.confidence == 1.0


async def test_a_probability_that_is_not_a_number_makes_no_answer_sure(engine: Engine) -> None:
    engine.raw = json.dumps(choice(logprobs={"content": [{"logprob": float("nan")}]})).encode()
    with pytest.raises(CandidateFailed, match="unsure") as failed:
        await asked(engine)
    assert failed.value.confidence == 0.0


async def test_an_answer_that_was_cut_off_does_not_go_out(engine: Engine) -> None:
    engine.finish = "length"
    with pytest.raises(CandidateFailed, match="stopped with length"):
        await asked(engine)


async def test_where_first_tokens_decide_they_alone_make_an_answer_sure_and_nothing_else_is_checked(
    engine: Engine,
) -> None:
    tokens = [{"logprob": math.log(0.9)}, {"logprob": math.log(0.1)}, {"logprob": 0.0}]
    odd = choice(message={"content": "somewhere else"}, logprobs={"content": tokens}, finish_reason="length")
    engine.raw = json.dumps(odd).encode()
    sent = await asked(engine, first_tokens=1)
    assert sent.confidence == pytest.approx(0.9)
    assert sent.flow is None
    (said,) = ChatCompletion.model_validate_json(sent.body).choices
    assert (said.message.content, said.finish_reason) == ("somewhere else", "length")
    with pytest.raises(CandidateFailed, match=r"^unsure$") as failed:
        await asked(engine, first_tokens=2)
    assert failed.value.confidence == pytest.approx(0.09)
    engine.raw = json.dumps(odd | {"usage": {"completion_tokens": 3}}).encode()
    with pytest.raises(CandidateFailed, match="longer than the client allows"):
        await asked(engine, {"max_tokens": 2}, first_tokens=1)
    engine.raw = json.dumps(odd | choice(finish_reason="abort")).encode()
    with pytest.raises(CandidateFailed, match="stopped with abort"):
        await asked(engine, first_tokens=1)


async def test_an_engine_that_errs_is_a_failure(engine: Engine) -> None:
    engine.status = 400
    with pytest.raises(CandidateFailed, match="candidate answered 400"):
        await asked(engine)
    engine.status = 500
    with pytest.raises(CandidateFailed, match="candidate unreachable: HTTP 500"):
        await asked(engine)


async def test_an_engine_that_is_slow_is_a_failure(engine: Engine) -> None:
    engine.delay = 1.0
    with pytest.raises(CandidateFailed, match="timed out"):
        await asked(engine, timeout=0.05)


async def test_an_engine_that_is_not_there_is_a_failure() -> None:
    with pytest.raises(CandidateFailed, match="unreachable"):
        await asked_at(route_to(f"http://127.0.0.1:{free_port()}"), body())


@pytest.mark.parametrize("kind", MALFORMED)
async def test_a_malformed_answer_is_a_failure(engine: Engine, kind: str) -> None:
    raw = MALFORMED[kind]
    engine.raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    with pytest.raises(CandidateFailed, match="not a chat completion"):
        await asked(engine)


@pytest.mark.parametrize(
    "messages",
    [None, 5, ["x"], [{"content": "x"}], [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]],
)
async def test_what_a_text_student_cannot_read_never_reaches_it(messages: Any) -> None:
    with pytest.raises(CandidateFailed, match="more than text"):
        await asked_at(route_to(f"http://127.0.0.1:{free_port()}"), body(messages=messages))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "asks for tools"),
        ({"n": 2}, "asks for several choices"),
        ({"n": "two"}, "asks for several choices"),
        ({"logprobs": True}, "asks for logprobs"),
        ({"stop": ["\n"]}, "asks for stop"),
        ({"max_tokens": 0}, "sets a limit of tokens that is none"),
        ({"max_completion_tokens": -1, "max_tokens": 9}, "sets a limit of tokens that is none"),
        ({"max_tokens": "many"}, "sets a limit of tokens that is none"),
        ({"tools": [], "n": 1, "logprobs": False, "stop": None}, None),
        ({"temperature": 0.2, "seed": 7, "user": "u", "max_tokens": 1}, None),
    ],
)
def test_what_only_the_teacher_can_do(fields: dict[str, Any], reason: str | None) -> None:
    assert teacher_only(body(**fields)) == reason


@given(st.text(), st.booleans())
def test_any_text_survives_both_wire_forms(text: str, with_usage: bool) -> None:
    reply = Reply(text, 1.0, {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    head = {"id": "chatcmpl-1", "created": 1, "model": "m"}
    events = chunks(Answer(b"", _events(head, reply, with_usage), True, 1.0))
    assert "".join(choice.delta.content or "" for event in events for choice in event.choices) == text
    assert ChatCompletion.model_validate_json(_plain(head, reply)).choices[0].message.content == text


def to(url: str, **changes: Any) -> Route:
    given: dict[str, Any] = {"url": url, "model": "small", "threshold": None, "max_tokens": None}
    return replace(route_to(url), **(given | changes))


async def hosted(provider: Hosted, fields: dict[str, Any] | None = None, **route: Any) -> Answer:
    with serving(provider.app) as url:
        return await asked_at(to(url, **route), body(**(fields or {})))


async def test_a_hosted_model_reads_the_clients_own_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVAL_KEY", "sk-rival")
    provider = Hosted(lambda text: "Billing.", "sk-rival")
    fields = {"temperature": 0.2, "max_tokens": 90, "user": "u-1", "stream": True, "seed": None}
    sent = await hosted(provider, fields, key_env="RIVAL_KEY", static=(line_hash("Never said."),))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks(sent)) == "Billing."
    assert provider.asked == [{"model": "small", "messages": body()["messages"], "temperature": 0.2, "max_tokens": 90}]
    assert sent.confidence == 1.0


@pytest.mark.parametrize("usage", [{"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}, None])
async def test_a_hosted_models_usage_is_passed_on_as_it_is_told(usage: dict[str, Any] | None) -> None:
    provider = Hosted(lambda text: "billing")
    provider.usage = usage
    assert json.loads((await hosted(provider)).body)["usage"] == usage


@pytest.mark.parametrize("key", [None, "", "sk-other", "two\nlines"])
async def test_without_its_key_a_hosted_model_is_unavailable_and_no_key_is_told(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RIVAL_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("RIVAL_KEY", key)
    with pytest.raises(CandidateFailed, match=r"^provider unavailable") as failed:
        await hosted(Hosted(lambda text: "billing", "sk-rival"), key_env="RIVAL_KEY")
    assert "sk-" not in str(failed.value)


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "candidate answered 400"), (429, "provider un"), (500, "HTTP 500")]
)
async def test_a_hosted_model_that_errs_is_a_failure(status: int, reason: str) -> None:
    provider = Hosted(lambda text: "billing")
    provider.status = status
    with pytest.raises(CandidateFailed, match=reason):
        await hosted(provider)


async def test_a_key_follows_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVAL_KEY", "sk-rival")
    provider = Hosted(lambda text: "billing")
    app = FastAPI()
    with serving(provider.app) as url:
        app.add_api_route("/v1/chat/completions", lambda: RedirectResponse(f"{url}/chat/completions"), methods=["POST"])
        with serving(app) as moved, pytest.raises(CandidateFailed, match="candidate answered 307"):
            await asked_at(to(moved, key_env="RIVAL_KEY"), body())
    assert provider.asked == []


async def test_a_hosted_model_that_is_not_there_or_cut_off_is_a_failure() -> None:
    with pytest.raises(CandidateFailed, match="provider unavailable: Client"):
        await asked_at(to(f"http://127.0.0.1:{free_port()}/v1"), body())
    provider = Hosted(lambda text: "billing")
    provider.finish = "length"
    with pytest.raises(CandidateFailed, match="candidate stopped with length"):
        await hosted(provider)
    with pytest.raises(CandidateFailed, match="unreadable request"):
        await hosted(provider, {"messages": []})


@pytest.mark.parametrize("kind", [kind for kind in MALFORMED if "probabilit" not in kind and "infinit" not in kind])
async def test_a_malformed_answer_of_a_hosted_model_is_a_failure_unless_only_its_counts_are(kind: str) -> None:
    provider, raw = Hosted(lambda text: "billing"), MALFORMED[kind]
    provider.raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    if raw in (MALFORMED["usage that is none"], MALFORMED["counts that are none"]):
        assert (await hosted(provider)).confidence == 1.0
        return
    with pytest.raises(CandidateFailed, match="not a chat completion"):
        await hosted(provider)
