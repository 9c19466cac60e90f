"""Small servers on loopback that speak what providers other than OpenAI do; the model's name says how they behave."""

import asyncio
import contextlib
import json
import struct
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from proxy.app import create_app
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from tests.proxies import Proxy
from tests.servers import free_port, serving

CALLS = (("toolu_1", "weather", {"city": "Köln", "unit": "C"}), ("toolu_2", "clock", {}))
WORDS = ("good ", "day")


class _Cut(StreamingResponse):
    """Breaks off without the end of its body."""

    async def stream_response(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.body_iterator:
            await send({"type": "http.response.body", "body": str(piece).encode(), "more_body": True})


@dataclass
class Provider:
    """What it was sent, and how many clients left before it had answered."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    waiting: int = 0
    left: int = 0

    sent: int = 0
    sent_at: float = 0.0

    def stuck(self) -> bool:
        """Whether what it sends is no longer taken."""
        return self.sent > 0 and time.monotonic() - self.sent_at > 0.5

    async def until_left(self, request: Request) -> None:
        self.waiting += 1
        try:
            while not await request.is_disconnected():
                await asyncio.sleep(0.02)
        finally:  # A stream's writer is cancelled when its client goes.
            self.left += 1


def _lines(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def _blocks(asked: dict[str, Any]) -> list[dict[str, Any]]:
    last = asked["messages"][-1]["content"]
    if asked.get("tools") and not any(block.get("type") == "tool_result" for block in last if isinstance(last, list)):
        calls = [{"type": "tool_use", "id": name, "name": tool, "input": given} for name, tool, given in CALLS]
        forced = (asked.get("tool_choice") or {}).get("name")
        if forced:
            return [{"type": "tool_use", "id": "toolu_1", "name": forced, "input": {"n": 7}}]
        return [{"type": "text", "text": "a moment"}, *calls]
    return [{"type": "text", "text": "".join(WORDS)}]


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    if block["type"] == "text":
        half = len(block["text"]) // 2
        return [{"type": "text_delta", "text": part} for part in (block["text"][:half], block["text"][half:])]
    whole = json.dumps(block["input"])
    parts = ("", whole[:9], whole[9:]) if block["input"] else ("",)
    return [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _events(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    blocks = _blocks(asked)
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "content": []}
    usage = {"input_tokens": 9, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 0, "output_tokens": 1}
    yield {"type": "message_start", "message": {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}}
    yield {"type": "ping"}
    for index, block in enumerate(blocks):
        empty = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in _deltas(block):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = "tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn"
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": stop, "stop_sequence": None},
        "usage": {"output_tokens": 2},
    }
    yield {"type": "message_stop"}


def _refusal(model: str, key: str) -> JSONResponse | None:
    status, kind, message = {
        "claude-denied": (401, "authentication_error", f"invalid x-api-key: {key}"),
        "claude-quoting": (400, "invalid_request_error", f"of {key}, the key {key} is not meant for this"),
        "claude-missing": (404, "not_found_error", "model: claude-missing"),
        "claude-limited": (429, "rate_limit_error", "slow down"),
        "claude-overloaded": (529, "overloaded_error", "Overloaded"),
        "claude-broken": (500, "api_error", "Internal server error"),
    }.get(model, (0, "", ""))
    headers = {"retry-after": "7"} if status == 429 else {}
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return JSONResponse(body, status, headers) if status else None


def anthropic(app: FastAPI, provider: Provider) -> None:
    """The messages API."""

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        asked = await request.json()
        provider.requests.append(asked)
        provider.headers.append(dict(request.headers))
        refusal = _refusal(asked["model"], request.headers.get("x-api-key", ""))
        if refusal is not None:
            return refusal
        if asked["model"] == "claude-mute":
            await provider.until_left(request)
        if asked["model"] == "claude-garbled":
            return Response('{"id": "msg_1", "content": [', media_type="application/json")
        if asked.get("stream"):
            kind = _Cut if asked["model"] == "claude-cut" else StreamingResponse
            return kind(_stream(request, asked, provider), media_type="text/event-stream")
        if asked["model"] == "claude-slow":
            await provider.until_left(request)
        if asked["model"] == "claude-foreign":
            return JSONResponse({"type": "message", "content": "of another shape"})
        events = list(_events(asked))
        head, end = events[0]["message"], events[-2]
        usage = {**head["usage"], **end["usage"]}
        return JSONResponse({**head, "content": _blocks(asked), **end["delta"], "usage": usage})


async def _stream(request: Request, asked: dict[str, Any], provider: Provider) -> AsyncIterator[str]:
    model, texts = asked["model"], 0
    if model == "claude-flood":
        async for line in _flood(asked, provider):
            yield line
    for event in _events(asked):
        yield _lines(event)
        texts += event["type"] == "content_block_delta"
        if not texts or model not in ("claude-cut", "claude-short", "claude-failing", "claude-slow"):
            continue
        if model == "claude-slow":
            await provider.until_left(request)
        if model == "claude-failing":
            yield _lines({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
        return


async def _flood(asked: dict[str, Any], provider: Provider) -> AsyncIterator[str]:
    """More than all buffers on the way hold."""
    start, _, block, delta, *_ = _events(asked)
    yield _lines(start) + _lines(block)
    delta["delta"]["text"] = "x" * (1 << 18)
    try:
        while True:
            provider.sent, provider.sent_at = provider.sent + 1, time.monotonic()
            yield _lines(delta)
            await asyncio.sleep(0)
    finally:
        provider.left += 1


def gemini(app: FastAPI, provider: Provider) -> None:
    """The generateContent API."""

    @app.post("/{path:path}")
    async def generate(path: str, request: Request) -> Response:
        asked = await request.json()
        provider.requests.append({"path": path, **asked})
        provider.headers.append(dict(request.headers))
        model, _, method = path.rpartition("/")[2].partition(":")
        if model == "gemini-denied":
            error = {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
            }
            return JSONResponse({"error": error}, 400)
        if model == "gemini-limited":
            return JSONResponse({"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}, 429)
        if method == "generateContent":
            return JSONResponse(_generated(asked, "".join(WORDS), True))
        assert request.query_params["alt"] == "sse"
        kind = _Cut if model == "gemini-cut" else StreamingResponse
        return kind(_generating(request, asked, model, provider), media_type="text/event-stream")


async def _generating(request: Request, asked: dict[str, Any], model: str, provider: Provider) -> AsyncIterator[str]:
    for word in WORDS:
        last = word == WORDS[-1]
        if not last or model not in ("gemini-cut", "gemini-short", "gemini-slow"):
            event = _generated(asked, word, last)
            if model == "gemini-uncounted":
                del event["usageMetadata"]
            yield f"data: {json.dumps(event)}\r\n\r\n"
        elif model == "gemini-slow":
            await provider.until_left(request)


def _generated(asked: dict[str, Any], text: str, last: bool) -> dict[str, Any]:
    results = any(
        "functionResponse" in json.dumps(turn) or "function_response" in json.dumps(turn) for turn in asked["contents"]
    )
    parts: list[dict[str, Any]] = [{"text": text}]
    if asked.get("tools") and not results:
        parts = [{"functionCall": {"name": tool, "args": given}} for _, tool, given in CALLS] if last else []
    usage = {"promptTokenCount": 109, "cachedContentTokenCount": 100, "candidatesTokenCount": 2, "totalTokenCount": 111}
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0, **({"finishReason": "STOP"} if last else {})}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash", "responseId": "r1"}


def bedrock(app: FastAPI, provider: Provider) -> None:
    """The Converse API; its streams are binary frames."""

    @app.post("/model/{model:path}/converse")
    async def converse(model: str, request: Request) -> Response:
        provider.requests.append({"model": model, **await request.json()})
        provider.headers.append(dict(request.headers))
        message = {"role": "assistant", "content": [{"text": "".join(WORDS)}]}
        return JSONResponse(
            {
                "output": {"message": message},
                "stopReason": "end_turn",
                "usage": _CONVERSE_USAGE,
                "metrics": {"latencyMs": 1},
            }
        )

    @app.post("/model/{model:path}/converse-stream")
    async def converse_stream(model: str, request: Request) -> Response:
        provider.requests.append({"model": model, **await request.json()})
        frames = [_frame(kind, event) for kind, event in _converse_events()]
        if "cut" in model:
            frames = frames[:2]
        return Response(b"".join(frames), media_type="application/vnd.amazon.eventstream")


_CONVERSE_USAGE = {"inputTokens": 9, "outputTokens": 2, "totalTokens": 111, "cacheReadInputTokens": 100}


def _converse_events() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "messageStart", {"role": "assistant"}
    for word in WORDS:
        yield "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}
    yield "contentBlockStop", {"contentBlockIndex": 0}
    yield (
        "contentBlockStart",
        {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "tooluse_1", "name": "weather"}}},
    )
    for part in ('{"city": ', '"Köln"}'):
        yield "contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": part}}}
    yield "contentBlockStop", {"contentBlockIndex": 1}
    yield "messageStop", {"stopReason": "tool_use"}
    yield "metadata", {"usage": _CONVERSE_USAGE, "metrics": {"latencyMs": 1}}


def _frame(kind: str, event: dict[str, Any]) -> bytes:
    """One event of application/vnd.amazon.eventstream: lengths, headers, payload, checksums."""
    named = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in named.items()
    )
    payload = json.dumps(event).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack("!I", zlib.crc32(body))


PREFIXES = ("anthropic/", "gemini/", "bedrock/", "nowhere/")
CANARY = "canary-4711-of-the-client"


@dataclass(frozen=True)
class Translating(Proxy):
    """A proxy that translates for three providers; nothing else is reached."""

    providers: dict[str, Provider]
    before: int = 0

    def records(self) -> list[dict[str, Any]]:
        return super().records()[self.before :]

    def anew(self) -> "Translating":
        """As if nothing had been asked yet; every exchange before has to be recorded."""
        for provider in self.providers.values():
            provider.requests.clear()
            provider.headers.clear()
            provider.waiting = provider.left = provider.sent = 0
        return replace(self, before=self.before + len(self.records()))

    def client(self, key: str = CANARY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0)


@contextlib.contextmanager
def translating_proxy(spool: Path, monkeypatch: pytest.MonkeyPatch, **teacher: Any) -> Iterator[Translating]:
    providers = {prefix: Provider() for prefix in PREFIXES}
    app = FastAPI()
    anthropic(app, providers["anthropic/"])
    bedrock(app, providers["bedrock/"])
    gemini(app, providers["gemini/"])
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(app)).removesuffix("/v1")
        for name in ("ANTHROPIC_API_BASE", "GEMINI_API_BASE", "AWS_BEDROCK_RUNTIME_ENDPOINT"):
            monkeypatch.setenv(name, url)
        settings = TeacherSettings(url=f"http://127.0.0.1:{free_port()}", translate=PREFIXES, **teacher)
        spooling = SpoolSettings(rotate_seconds=0.05)
        relaying = create_app(ProxySettings(), settings, spooling, spool)
        yield Translating(stack.enter_context(serving(relaying)), spool, providers)
