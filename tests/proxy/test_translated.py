"""Streams and errors as litellm makes them of what small servers on loopback send in the providers' own formats."""

import asyncio
import importlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from proxy.derive import CHAT, Derived, derive
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.translate import close_litellm
from proxy.translated import Failures, streamed
from router.prices import cost, price_map
from tests.providers import CALLS, CANARY, Translating, translating_proxy
from tests.proxy.test_translate import BEDROCK, CLAUDE, GEMINI, MESSAGES, TOOLS, ask, post
from tests.servers import eventually

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

WITH_USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translating]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        with translating_proxy(tmp_path_factory.mktemp("spool"), monkeypatch) as proxy:
            yield proxy


@pytest.fixture
def proxy(one: Translating) -> Iterator[Translating]:
    proxy = one.anew()
    yield proxy
    assert len(proxy.records()) == 1  # Each test makes one exchange, and waits for its record.


def derived(proxy: Translating) -> tuple[dict[str, Any], Derived]:
    record = eventually(proxy.records)[0]
    request, response = record["request"], record["response"]
    return record, derive(CHAT, None, request, record["status"], record["stream"], response)


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("model", [CLAUDE, GEMINI])
def test_a_stream_and_its_usage(model: str, wanted: bool, proxy: Translating) -> None:
    chunks = ask(proxy, model, stream=True, **(WITH_USAGE if wanted else {}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "good day"
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert [chunk.usage for chunk in chunks if chunk.choices and chunk.usage] == []
    told = [chunk.usage for chunk in chunks if not chunk.choices]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in told] == ([(109, 2)] if wanted else [])
    record, found = derived(proxy)
    assert (record["partial"], found.ended, found.model, found.answer) == (False, True, model, "good day")
    assert (found.usage_source, found.prompt_tokens, found.cached_tokens) == ("provider", 109, 100)
    paid = cost(price_map({}), found.model, found.prompt_tokens, found.cached_tokens, found.completion_tokens)
    per_million = {CLAUDE: (1.0, 0.1, 5.0), GEMINI: (0.3, 0.03, 2.5)}[model]
    assert paid == pytest.approx(sum(n * price / 1e6 for n, price in zip((9, 100, 2), per_million, strict=True)))


@pytest.mark.parametrize("model", [CLAUDE, GEMINI])
def test_tool_calls_in_a_stream(model: str, proxy: Translating) -> None:
    chunks = [chunk for chunk in ask(proxy, model, stream=True, tools=TOOLS) if chunk.choices]
    _, found = derived(proxy)
    calls: dict[int, list[str]] = {}
    for delta in (delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()):
        if delta.id:
            calls[delta.index] = [delta.id, delta.function.name, ""]
        calls[delta.index][2] += delta.function.arguments or ""
    assert [(name, json.loads(given)) for _, name, given in calls.values()] == [call[1:] for call in CALLS]
    assert len({made for made, _, _ in calls.values()}) == 2
    assert found.finish_reason == chunks[-1].choices[0].finish_reason == "tool_calls"
    recorded = json.loads(found.tool_calls or "[]")
    assert [[call["id"], *call["function"].values()] for call in recorded] == list(calls.values())


def test_the_frames_of_bedrock(proxy: Translating) -> None:
    ask(proxy, BEDROCK, stream=True, tools=TOOLS)
    record, found = derived(proxy)
    assert (record["partial"], found.answer, found.finish_reason) == (False, "good day", "tool_calls")
    assert json.loads(json.loads(found.tool_calls or "[]")[0]["function"]["arguments"]) == {"city": "Köln"}
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (109, 100, 2)
    assert cost(price_map({}), found.model, 109, 100, 2) is not None


def test_usage_that_no_provider_told_is_not_made_up(proxy: Translating) -> None:
    chunks = ask(proxy, "gemini/gemini-uncounted", stream=True, **WITH_USAGE)
    assert [chunk.usage for chunk in chunks if chunk.usage] == []
    record, found = derived(proxy)
    assert (found.ended, found.usage, found.answer) == (True, None, "good day")
    assert record["response"].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "model",
    [
        "anthropic/claude-cut",
        "anthropic/claude-short",
        "anthropic/claude-failing",
        "gemini/gemini-cut",
        "bedrock/converse/anthropic.claude-cut-v1:0",
    ],
)
def test_what_was_not_finished_is_not_shown_as_finished(model: str, proxy: Translating) -> None:
    with pytest.raises(openai.APIError, match="broke off") as caught:
        ask(proxy, model, stream=True)
    assert caught.value.code == "stream_interrupted"
    record, found = derived(proxy)
    assert (record["partial"], record["error"], found.ended) == (True, "upstream died: TranslationBroke", False)
    assert "good" in (found.answer or "")
    assert "[DONE]" not in record["response"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "status", "code", "text"),
    [
        ("anthropic/claude-denied", 401, "invalid_api_key", "anthropic: invalid"),
        ("anthropic/claude-missing", 404, "model_not_found", "anthropic: model: claude-missing"),
        ("anthropic/claude-limited", 429, "rate_limit_exceeded", "anthropic: slow down"),
        ("anthropic/claude-broken", 500, None, "anthropic: Internal server error"),
        ("anthropic/claude-overloaded", 529, None, "anthropic: Overloaded"),
        ("anthropic/claude-garbled", 502, None, "anthropic: "),
        ("gemini/gemini-denied", 401, "invalid_api_key", "gemini: API key not valid."),
        ("gemini/gemini-limited", 429, "rate_limit_exceeded", "gemini: quota"),
        ("nowhere/x", 400, None, "nowhere: "),
    ],
)
def test_refusals_keep_their_status(
    model: str, status: int, code: str | None, text: str, stream: bool, proxy: Translating
) -> None:
    answer = post(proxy, {"model": model, "messages": MESSAGES, "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"].startswith(text)
    assert error["type"] == ("invalid_request_error" if status in (400, 401, 404) else "upstream_error")
    assert answer.headers.get("retry-after") == ("7" if model == "anthropic/claude-limited" else None)
    record, _ = derived(proxy)
    assert (record["status"], record["stream"], record["partial"]) == (status, False, False)


@pytest.mark.parametrize("model", ["anthropic/claude-slow", "gemini/gemini-slow"])
def test_a_client_that_hangs_up_ends_the_providers_stream(model: str, proxy: Translating) -> None:
    provider = proxy.providers[model.partition("/")[0] + "/"]
    body = {"model": model, "messages": MESSAGES, "stream": True}
    headers = {"Authorization": f"Bearer {CANARY}"}
    with httpx.stream("POST", f"{proxy.url}/chat/completions", json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()  # Held, or the client would hang up at once.
        assert "good" in next(lines)
        eventually(lambda: provider.waiting == 1)
        assert provider.left == 0
    eventually(lambda: provider.left == 1)
    record, found = derived(proxy)
    assert (record["partial"], record["error"], found.ended) == (True, "client hung up", False)


def test_a_client_that_hangs_up_without_reading_ends_it_too(proxy: Translating) -> None:
    provider = proxy.providers["anthropic/"]
    body = {"model": "anthropic/claude-flood", "messages": MESSAGES, "stream": True}
    headers = {"Authorization": f"Bearer {CANARY}"}
    with httpx.stream("POST", f"{proxy.url}/chat/completions", json=body, headers=headers, timeout=60):
        eventually(lambda: provider.stuck())
        assert provider.left == 0
    eventually(lambda: provider.left == 1)
    assert derived(proxy)[0]["error"] == "client hung up"


async def test_closing_ends_litellms_request(one: Translating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm, provider = importlib.import_module("litellm"), one.anew().providers["gemini/"]
    asked = {"model": "gemini/gemini-slow", "messages": MESSAGES, "stream": True, "api_key": CANARY}
    chunks = await litellm.acompletion(**asked)  # Held here, so that it does not end because nobody has it.
    stream = await streamed(chunks, Failures("gemini", (), Redactor(SECRETS_ONLY)))
    async with asyncio.timeout(20):
        while provider.waiting == 0:
            await asyncio.sleep(0.02)
        assert provider.left == 0
        stream.close()
        while provider.left == 0:
            await asyncio.sleep(0.02)
    await close_litellm()


def test_failures_show_no_secret_and_end_somewhere() -> None:
    failures = Failures("p", ["s3cret-s3cret"], Redactor(SECRETS_ONLY))
    chained = RuntimeError("of s3cret-s3cret\nand sk-proj-" + "a1B2" * 12)
    chained.__cause__ = ValueError()
    chained.__cause__.__context__ = chained
    text = failures.text(chained)
    assert text.startswith("p: of [secret] and ")
    assert "a1B2" not in text
    assert failures.answer(chained).status == 502
    assert len(failures.text(RuntimeError("x" * 10_000))) < 1100
