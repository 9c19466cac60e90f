"""litellm itself, against a small server that speaks Anthropic's messages API on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from proxy.app import create_app
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from tests.servers import free_port, serving

# litellm warns of its own dependencies' deprecations while it is imported and used.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "greet"}]
HEAD = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-3-5-haiku-20241022",
    "stop_sequence": None,
}
EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {**HEAD, "content": [], "stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "good "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "day"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]


def anthropic() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        if request.headers["x-api-key"] != "sk-ant":
            error = {"type": "authentication_error", "message": "invalid x-api-key"}
            return JSONResponse({"type": "error", "error": error}, 401)
        asked = await request.json()
        if asked.get("stream"):
            lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in EVENTS)
            return StreamingResponse(lines, media_type="text/event-stream")
        content = [{"type": "text", "text": "good day"}]
        usage = {"input_tokens": 9, "output_tokens": 2}
        return JSONResponse({**HEAD, "content": content, "stop_reason": "end_turn", "usage": usage})

    return app


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(anthropic()) as provider:
        monkeypatch.setenv("ANTHROPIC_API_BASE", provider.removesuffix("/v1"))
        teacher = TeacherSettings(url=f"http://127.0.0.1:{free_port()}", translate=("anthropic/",))
        with serving(create_app(ProxySettings(), teacher, SpoolSettings(), tmp_path)) as url:
            yield url


def test_a_translated_answer(proxy: str) -> None:
    with openai.OpenAI(base_url=proxy, api_key="sk-ant", max_retries=0) as client:
        answer = client.chat.completions.create(model="anthropic/claude-3-5-haiku-20241022", messages=MESSAGES)
    assert answer.choices[0].message.content == "good day"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 2)


def test_a_translated_stream(proxy: str) -> None:
    with (
        openai.OpenAI(base_url=proxy, api_key="sk-ant", max_retries=0) as client,
        client.chat.completions.create(
            model="anthropic/claude-3-5-haiku-20241022", messages=MESSAGES, stream=True
        ) as chunks,
    ):
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "good day"


def test_the_providers_refusal_keeps_its_status(proxy: str) -> None:
    with openai.OpenAI(base_url=proxy, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="invalid x-api-key"):
            client.chat.completions.create(model="anthropic/claude-3-5-haiku-20241022", messages=MESSAGES)


def test_other_models_are_not_translated(proxy: str) -> None:
    with openai.OpenAI(base_url=proxy, api_key="sk-ant", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match=r"teacher\.url"):
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
