"""Owns the replay teacher: an HTTP server that answers recorded prompts as the recorded teacher did. Knows no store.

The wire is OpenAI's chat completions, streamed and not. A prompt that was not recorded gets a 404, never an invention;
a prompt recorded several times gets its answers in recorded order, round and round. Sampling options, length limits and
`logprobs` change nothing: the recording has one text an answer and no token probabilities (`logprobs` is null).

Tokens are counted with gpt-4o's own encoding, o200k_base, which litellm ships. For text, `completion_tokens` is the
count of the answer's tokens, and `prompt_tokens` adds OpenAI's published chat framing (3 a message, 3 to prime the
answer). How OpenAI renders tools and tool calls into tokens is not published, so there these are counted as compact
JSON: near the bill, not equal to it. Nothing is ever reported as cached or as reasoning.

Fault injection: the request header `x-replay-status: 401|429|500|503` makes the server answer with that status and an
OpenAI-style error, `Retry-After: 7` with 429; `x-replay-latency: 2.5` makes it wait that many seconds first.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import uuid4

import tiktoken
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from proxy.errors import BadInput, envelope
from proxy.tokens import answer_tokens, load_encoding, prompt_tokens
from proxy.traffic_file import Row, message_text

FINGERPRINT = "fp_replay"
MAX_CHOICES = 128  # OpenAI's own limit for n
LONGEST_WAIT = 600.0  # seconds
INVALID = "invalid_request_error"
FAULTS: dict[str, tuple[str, str, str | None]] = {
    "401": ("Incorrect API key provided.", INVALID, "invalid_api_key"),
    "429": ("Rate limit reached. Try again in 7s.", "requests", "rate_limit_exceeded"),
    "500": ("The server had an error while processing your request.", "server_error", None),
    "503": ("The engine is currently overloaded, please try again later.", "server_error", None),
}


def create_replay(
    rows: Sequence[Row],
    *,
    latency: float = 0.0,
    chunk_delay: float = 0.0,
    model: str = "gpt-4o",
    key: str | None = None,
) -> FastAPI:
    """The server over `rows`; `latency` is seconds before the first byte, `chunk_delay` seconds between stream chunks.

    `model` is listed at /v1/models beside the recorded ones; an answer names the model that was asked for. With `key`,
    a request must carry it as its bearer token. Raises `BadInput` for rows with anything but text in a message, and
    `Unavailable` where the token encoding is not installed.
    """
    replay = _Replay(latency, chunk_delay, tuple(dict.fromkeys((model, *(row.model for row in rows)))), key)
    for number, row in enumerate(rows, start=1):
        if any(message_text(message) is None for message in row.messages):
            raise BadInput(f"row {number} has a message with more than text; the replay teacher takes text only")
        replay.recorded.setdefault(prompt_key(row.messages, row.tools), []).append(row)
    app = FastAPI(openapi_url=None)
    app.add_api_route("/v1/chat/completions", replay.chat, methods=["POST"])
    app.add_api_route("/v1/models", replay.models, methods=["GET"])
    return app


def prompt_key(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> str:
    """What makes two prompts the same: roles, texts, tool calls (not their random ids) and tools."""
    turns = [
        [turn.get("role"), message_text(turn), [call.get("function") for call in turn.get("tool_calls") or ()]]
        for turn in messages
    ]
    return sha256(json.dumps([turns, tools or None], sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class _Replay:
    """The recording, and per prompt how many answers were served."""

    latency: float
    chunk_delay: float
    names: tuple[str, ...]
    key: str | None
    encoding: tiktoken.Encoding = field(default_factory=load_encoding)
    recorded: dict[str, list[Row]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        if refused := self._refused(request):
            return refused
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "replay"} for name in self.names]
        return JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        if refused := self._refused(request):
            return refused
        try:
            asked = _asked(await request.body())
        except BadInput as error:
            return _error(400, str(error), INVALID, None)
        row = self._next(prompt_key(asked["messages"], asked.get("tools")))
        if row is None:
            return _error(404, "This prompt is not in the recording.", INVALID, "unknown_prompt")
        try:
            await asyncio.sleep(_latency(request.headers.get("x-replay-latency"), self.latency))
        except BadInput as error:
            return _error(400, str(error), INVALID, None)
        head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": asked["model"]}
        copies = asked.get("n") or 1
        usage = self._usage(row, copies)
        headers = {"x-request-id": f"req_{uuid4().hex}"}
        if not asked.get("stream"):
            return JSONResponse(_completion(head, row, copies, usage), headers=headers)
        chunks = _chunks(head, row, copies)
        if (asked.get("stream_options") or {}).get("include_usage"):
            chunks = _with_usage(chunks, head, usage)
        return StreamingResponse(self._events(chunks), media_type="text/event-stream", headers=headers)

    def _refused(self, request: Request) -> Response | None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, *FAULTS["401"])
        fault = request.headers.get("x-replay-status")
        if fault is None:
            return None
        if fault not in FAULTS:
            return _error(400, f"x-replay-status takes one of {', '.join(FAULTS)}.", INVALID, None)
        return _error(int(fault), *FAULTS[fault], headers={"Retry-After": "7"} if fault == "429" else None)

    def _next(self, key: str) -> Row | None:
        rows = self.recorded.get(key)
        if rows is None:
            return None
        turn = self.served.get(key, 0)
        self.served[key] = turn + 1
        return rows[turn % len(rows)]

    def _usage(self, row: Row, copies: int) -> dict[str, Any]:
        """The prompt is billed once and the answer once a choice, as OpenAI does."""
        prompt = prompt_tokens(self.encoding, row.messages, row.tools or ())
        answer = copies * answer_tokens(self.encoding, row.answer, row.tool_calls)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    async def _events(self, chunks: Iterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        for number, chunk in enumerate(chunks):
            if number and self.chunk_delay:
                await asyncio.sleep(self.chunk_delay)
            yield b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def _asked(body: bytes) -> dict[str, Any]:
    """The request, checked as far as answering needs it; `BadInput` otherwise."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadInput("We could not parse the JSON body of your request.") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("model"), str) or not asked["model"]:
        raise BadInput("You must provide a model parameter.")
    messages, copies = asked.get("messages"), asked.get("n")
    if not isinstance(messages, list) or not messages or not all(isinstance(turn, dict) for turn in messages):
        raise BadInput("'messages' must be a non-empty list of objects.")
    if not all(isinstance(turn.get("content"), str | list | None) for turn in messages):
        raise BadInput("The 'content' of a message must be a string or a list of parts.")
    calls = [call for turn in messages for call in turn.get("tool_calls") or ()]
    if not all(isinstance(call, dict) for call in calls):
        raise BadInput("The 'tool_calls' of a message must be a list of objects.")
    if not isinstance(asked.get("stream_options"), dict | None):
        raise BadInput("'stream_options' must be an object.")
    if copies is not None and (type(copies) is not int or not 1 <= copies <= MAX_CHOICES):
        raise BadInput(f"'n' must be an integer from 1 to {MAX_CHOICES}.")
    return asked


def _latency(asked: str | None, usual: float) -> float:
    """Seconds."""
    if asked is None:
        return usual
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_WAIT:
        raise BadInput(f"x-replay-latency takes 0 to {LONGEST_WAIT:g} seconds.")
    return seconds


def _error(status: int, message: str, kind: str, code: str | None, headers: dict[str, str] | None = None) -> Response:
    return Response(envelope(message, kind, code), status, headers, "application/json")


def _finish(row: Row) -> str:
    return "tool_calls" if row.tool_calls else "stop"


def _completion(head: dict[str, Any], row: Row, copies: int, usage: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": row.answer, "refusal": None, "annotations": []}
    if row.tool_calls:
        message["tool_calls"] = list(row.tool_calls)
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": _finish(row)} for index in range(copies)
    ]
    tail = {"choices": choices, "usage": usage, "service_tier": "default", "system_fingerprint": FINGERPRINT}
    return {"object": "chat.completion", **head, **tail}


def _chunks(head: dict[str, Any], row: Row, copies: int) -> Iterator[dict[str, Any]]:
    """The stream without usage; the choices of one step follow each other, as OpenAI interleaves them."""
    for delta in _deltas(row):
        finish = None if delta else _finish(row)
        for index in range(copies):
            yield _chunk(head, [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}])


def _chunk(head: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    same = {"service_tier": "default", "system_fingerprint": FINGERPRINT}
    return {"object": "chat.completion.chunk", **head, **same, "choices": choices}


def _with_usage(
    chunks: Iterator[dict[str, Any]], head: dict[str, Any], usage: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """With include_usage every chunk has the field, null until a last one without choices."""
    for chunk in chunks:
        yield {**chunk, "usage": None}
    yield {**_chunk(head, []), "usage": usage}


def _deltas(row: Row) -> Iterator[dict[str, Any]]:
    """Role, content in pieces, tool calls with their arguments in pieces, and an empty one to finish on."""
    yield {"role": "assistant", "content": None if row.answer is None else "", "refusal": None}
    for piece in _pieces(row.answer or ""):
        yield {"content": piece}
    for index, call in enumerate(row.tool_calls or ()):
        opening = {**call["function"], "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": opening}]}
        for piece in _pieces(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    yield {}


def _pieces(text: str) -> list[str]:
    """The text in word-sized pieces that join to exactly the text."""
    return re.findall(r"\s*\w+|\s*[^\w\s]+|\s+", text)
