"""litellm itself, against small servers on loopback that speak the providers' own APIs."""

import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest

from proxy.errors import BadInput
from proxy.settings import TeacherSettings
from proxy.translate import TranslatingTeacher, translating
from proxy.upstream import Teacher
from tests.providers import CALLS, CANARY, Translating, translating_proxy
from tests.servers import eventually, free_port

# litellm warns of its own dependencies' deprecations while it is imported and used.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

CLAUDE, GEMINI, BEDROCK = (
    "anthropic/claude-haiku-4-5",
    "gemini/gemini-2.5-flash",
    "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0",
)
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "greet"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}
    for _, name, _ in CALLS
]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translating]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        with translating_proxy(tmp_path_factory.mktemp("spool"), monkeypatch) as proxy:
            yield proxy


@pytest.fixture
def shared(one: Translating) -> Translating:
    """For tests that look at no records."""
    return one.anew()


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Translating]:
    with translating_proxy(tmp_path, monkeypatch) as proxy:
        yield proxy


def ask(proxy: Translating, model: str, key: str = CANARY, **more: Any) -> Any:
    with proxy.client(key) as client:
        answer = client.chat.completions.create(**{"model": model, "messages": MESSAGES, **more})
        return list(answer) if more.get("stream") else answer


def post(proxy: Translating, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    sent = {"Authorization": f"Bearer {CANARY}"} if headers is None else headers
    return httpx.post(f"{proxy.url}/chat/completions", json=body, headers=sent, timeout=60)


@pytest.mark.parametrize("model", [CLAUDE, GEMINI, BEDROCK])
def test_an_answer_and_its_record(model: str, proxy: Translating) -> None:
    answer = ask(proxy, model)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("good day", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (109, 2)
    assert answer.usage.prompt_tokens_details.cached_tokens == 100
    (record,) = eventually(proxy.records)
    assert (record["status"], record["partial"], record["stream"]) == (200, False, False)
    assert json.loads(record["request"])["model"] == model
    response = json.loads(record["response"])
    assert (response["id"], response["choices"][0]["message"]["content"]) == (answer.id, "good day")
    assert (response["usage"]["prompt_tokens"], response["usage"]["completion_tokens"]) == (109, 2)


@pytest.mark.parametrize(("model", "ids"), [(CLAUDE, ["toolu_1", "toolu_2"]), (GEMINI, None)])
def test_several_tools_are_called_and_their_results_sent(
    model: str, ids: list[str] | None, shared: Translating
) -> None:
    choice = ask(shared, model, tools=TOOLS).choices[0]
    calls = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [call[1:] for call in CALLS]
    assert len({call.id for call in calls}) == 2
    assert ids is None or [call.id for call in calls] == ids
    results = [{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in calls]
    turns = [*MESSAGES, choice.message.model_dump(exclude_none=True), *results]
    answer = ask(shared, model, messages=turns, tools=TOOLS)
    assert answer.choices[0].message.content == "good day"
    sent = json.dumps(shared.providers[model.partition("/")[0] + "/"].requests[-1])
    assert sent.count('"toolu_2"') == 2 if ids else '"functionResponse"' in sent or '"function_response"' in sent


@pytest.mark.parametrize("model", [CLAUDE, GEMINI])
def test_an_image_goes_along(model: str, shared: Translating) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    ask(shared, model, messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}])
    assert PIXEL in json.dumps(shared.providers[model.partition("/")[0] + "/"].requests[-1])


def test_an_image_is_not_fetched_from_where_only_we_can_reach(shared: Translating) -> None:
    url = f"{shared.url.removesuffix('/v1')}/healthz"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = post(shared, {"model": GEMINI, "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert shared.providers["gemini/"].requests == []


def test_json_is_asked_for_as_the_provider_has_it(shared: Translating) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    ask(shared, CLAUDE, response_format=wanted)
    ask(shared, GEMINI, response_format={"type": "json_object"})
    assert '"integer"' in json.dumps(shared.providers["anthropic/"].requests[-1])
    assert shared.providers["gemini/"].requests[-1]["generationConfig"]["response_mime_type"] == "application/json"


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers", "mock_response", "fallbacks"])
def test_a_client_does_not_set_litellm_up(name: str, shared: Translating) -> None:
    answer = post(shared, {"model": CLAUDE, "messages": MESSAGES, name: "http://127.0.0.1:9"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert repr(name) in answer.json()["error"]["message"]
    assert shared.providers["anthropic/"].requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": "greet"},
        {"messages": ["greet"]},
        {"tools": [3]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "mcp", "server_url": "http://127.0.0.1:9"}]},
        {"tools": 3},
    ],
)
def test_what_litellm_would_misunderstand_is_refused(wrong: dict[str, Any], shared: Translating) -> None:
    answer = post(shared, {"model": CLAUDE, "messages": MESSAGES, **wrong})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert shared.providers["anthropic/"].requests == []


def test_a_parameter_the_provider_does_not_have_is_named(shared: Translating) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'logprobs'.*leave them out") as caught:
        ask(shared, CLAUDE, logprobs=True)
    assert caught.value.code == "unsupported_parameter"
    assert "litellm" not in str(caught.value)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic eDp5"}])
def test_without_a_key_the_operators_is_not_used(
    headers: dict[str, str], shared: Translating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-4711-of-the-operator")
    answer = post(shared, {"model": CLAUDE, "messages": MESSAGES}, headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert shared.providers["anthropic/"].requests == []


@pytest.mark.parametrize(
    ("model", "name"), [(CLAUDE, "x-api-key"), (GEMINI, "x-goog-api-key"), (BEDROCK, "authorization")]
)
def test_clients_bring_the_providers_keys(model: str, name: str, shared: Translating) -> None:
    ask(shared, model)
    (headers,) = shared.providers[model.partition("/")[0] + "/"].headers
    assert headers[name].removeprefix("Bearer ") == CANARY


def test_our_keys_are_the_providers_own_and_the_teachers_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    ours = {"TEACHERS_OWN": "canary-4711-teacher", "ANTHROPIC_API_KEY": "canary-4711-claude"}
    for name, value in {**ours, "GEMINI_API_KEY": "canary-4711-gemini"}.items():
        monkeypatch.setenv(name, value)
    with translating_proxy(tmp_path, monkeypatch, key_env="TEACHERS_OWN") as proxy:
        ask(proxy, CLAUDE)
        ask(proxy, GEMINI)
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(proxy, "anthropic/claude-denied")
        sent = json.dumps([provider.headers for provider in proxy.providers.values()])
    assert (sent.count("canary-4711-claude"), sent.count("canary-4711-gemini")) == (2, 1)
    assert "4711-teacher" not in sent
    assert CANARY not in sent
    shown = (str(caught.value), caplog.text, *capfd.readouterr(), *(file.read_text() for file in tmp_path.rglob("*.*")))
    assert not any("4711" in text for text in shown)


def test_no_key_is_shown_wherever_the_provider_quotes_it(
    proxy: Translating, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for model in ("claude-denied", "claude-quoting", "claude-garbled", "claude-cut", "claude-failing"):
        for stream in (False, True):
            answer = post(proxy, {"model": f"anthropic/{model}", "messages": MESSAGES, "stream": stream})
            assert "4711" not in answer.text
    assert len(eventually(lambda: len(proxy.records()) == 10 and proxy.records())) == 10
    assert "4711" not in json.dumps(proxy.records())
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("stillroom"))
    assert "Overloaded" in ours
    assert "4711" not in ours + "".join(capfd.readouterr())


def test_other_models_and_paths_are_not_translated(shared: Translating) -> None:
    with pytest.raises(openai.InternalServerError, match=r"teacher\.url"):
        ask(shared, "gpt-4o")
    with shared.client() as client, pytest.raises(openai.InternalServerError, match=r"teacher\.url"):
        client.embeddings.create(model=CLAUDE, input="x")


def test_a_provider_out_of_reach(shared: Translating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_BASE", f"http://127.0.0.1:{free_port()}")
    answer = post(shared, {"model": CLAUDE, "messages": MESSAGES})
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_is_silent_for_too_long(stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with translating_proxy(tmp_path, monkeypatch, read_timeout=0.5) as proxy:
        answer = post(proxy, {"model": "anthropic/claude-mute", "messages": MESSAGES, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "upstream_error")


def test_a_client_that_hangs_up_ends_the_providers_work(proxy: Translating) -> None:
    ask(proxy, CLAUDE)  # litellm is loaded now
    provider = proxy.providers["anthropic/"]
    body = {"model": "anthropic/claude-slow", "messages": MESSAGES}
    with httpx.Client(timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{proxy.url}/chat/completions", json=body, headers={"Authorization": f"Bearer {CANARY}"})
    eventually(lambda: provider.left == 1)
    record = eventually(lambda: [each for each in proxy.records() if each["partial"]])[0]
    assert record["error"] == "client hung up"


@pytest.mark.parametrize("model", [CLAUDE, GEMINI, BEDROCK])
def test_a_worker_that_stops_leaves_no_connection_of_litellms(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(_open_sessions())
    for name in ("first", "second"):  # The second one's event loop is new, litellm is not.
        with translating_proxy(tmp_path / name, monkeypatch) as proxy:
            ask(proxy, model)
            ask(proxy, model, stream=True)
    assert set(_open_sessions()) <= before


def _open_sessions() -> Iterator[aiohttp.ClientSession]:
    yield from (each for each in gc.get_objects() if type(each) is aiohttp.ClientSession and not each.closed)


@pytest.mark.parametrize("prefix", ["vertex_ai/", "sagemaker_chat/"])
def test_what_signs_in_by_itself_is_not_offered_to_anybody(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Teacher(TeacherSettings())
    with pytest.raises(BadInput, match=prefix):
        translating(inner, TeacherSettings(translate=(prefix,)))
    monkeypatch.setenv("TEACHERS_OWN", "k")
    assert isinstance(
        translating(inner, TeacherSettings(translate=(prefix,), key_env="TEACHERS_OWN")), TranslatingTeacher
    )
    assert translating(inner, TeacherSettings()) is inner
