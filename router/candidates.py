"""Owns asking a candidate: the request it gets, the confidence of its answer, the checks before it may go out.

The same function serves shadow and live traffic, so that what was judged is what is served. Must not decide whether a
candidate is asked at all.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.deciding import Answer, CandidateFailed
from proxy.errors import BadInput
from proxy.ids import ulid
from router.calibration import Knots, apply
from router.confidence import confidence
from router.evaluators import well_formed
from router.policy import Route
from router.prompt import changed, student_messages
from router.said import Said

# What a narrow text student cannot do as the teacher would; such requests stay with the teacher.
_TEACHER_ONLY = ("tools", "functions", "logprobs", "top_logprobs", "audio", "stop", "logit_bias", "web_search_options")
# Reasons that others tell apart: how a fallback begins in the log.
UNREACHABLE, UNSURE, MALFORMED = "candidate unreachable", "unsure", "answer breaks the format"
CHANGED = "template changed"  # As a decision's reason ends, and a verdict's error.
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
# What reading a message or an answer of another shape than expected may raise.
_SHAPE_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, BadInput)


@dataclass(frozen=True, slots=True)
class Reply:
    """A candidate's answer before any check; `confidence` in [0, 1], calibrated where the candidate is."""

    text: str
    confidence: float
    usage: Mapping[str, int]


def teacher_only(body: Mapping[str, Any]) -> str | None:
    """Why this request is not for a candidate, or None."""
    for key in _TEACHER_ONLY:
        if body.get(key):
            return f"asks for {key}"
    if body.get("n") not in (None, 1):
        return "asks for several choices"
    return None


async def ask(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    """Ask for one greedy answer with token probabilities; CandidateFailed when it errs, times out or is cut off."""
    payload = {
        "model": route.candidate,
        "messages": _messages(route, body),
        "temperature": 0,
        "max_tokens": route.max_tokens,
        "logprobs": True,
    }
    try:
        async with session.post(
            f"{route.url}/v1/chat/completions", json=payload, timeout=aiohttp.ClientTimeout(total=route.timeout)
        ) as response:
            if response.status >= 500:
                raise CandidateFailed(f"{UNREACHABLE}: HTTP {response.status}")  # As an engine that dies says it.
            if response.status != 200:
                raise CandidateFailed(f"candidate answered {response.status}")
            return _reply(await response.read(), route.calibration)
    except TimeoutError:
        raise CandidateFailed("candidate timed out") from None
    except (aiohttp.ClientError, OSError) as error:
        raise CandidateFailed(f"{UNREACHABLE}: {type(error).__name__}") from None


def check(route: Route, reply: Reply) -> None:
    """Refuse an answer that breaks the task's format or is less sure than what was certified: CandidateFailed."""
    if not well_formed(route.evaluator, Said(reply.text), frozenset(route.labels)):
        raise CandidateFailed(MALFORMED, reply.confidence)
    if route.threshold is not None and reply.confidence < route.threshold:
        raise CandidateFailed(UNSURE, reply.confidence)


async def answer(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Answer:
    """The candidate's checked answer in the wire form the client asked for; CandidateFailed before any byte is out."""
    reply = await ask(session, route, body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(limit, int) and reply.usage["completion_tokens"] > limit:
        raise CandidateFailed("answer is longer than the client allows", reply.confidence)
    check(route, reply)
    stream = body.get("stream") is True
    head = {"id": f"chatcmpl-{ulid()}", "created": int(time.time()), "model": body.get("model", route.candidate)}
    if not stream:
        return Answer(b"application/json", _plain(head, reply), False, reply.confidence)
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return Answer(b"text/event-stream; charset=utf-8", _events(head, reply, with_usage), True, reply.confidence)


def _messages(route: Route, body: Mapping[str, Any]) -> list[dict[str, str]]:
    try:
        lines = frozenset(route.static)
        other, messages = changed(body["messages"], lines, route.extra_lines), student_messages(body["messages"], lines)
    except _SHAPE_ERRORS:
        raise CandidateFailed("the request holds more than text") from None
    if other:
        raise CandidateFailed(CHANGED)
    return messages


def _reply(raw: bytes, calibration: Knots) -> Reply:
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        if choice["finish_reason"] != "stop":
            raise CandidateFailed(f"candidate stopped with {choice['finish_reason']}")
        logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
        text, usage = choice["message"]["content"] or "", body.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return Reply(text, apply(calibration, confidence(logprobs)), {key: int(usage.get(key) or 0) for key in _COUNTS})
    except _SHAPE_ERRORS:
        raise CandidateFailed("candidate's answer is not a chat completion") from None


def _plain(head: Mapping[str, Any], reply: Reply) -> bytes:
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": reply.usage}).encode()


def _events(head: Mapping[str, Any], reply: Reply, with_usage: bool) -> bytes:
    usage = {"usage": None} if with_usage else {}
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": "", "refusal": None}, None),
        ({"content": reply.text}, None),
        ({}, "stop"),
    ]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], **usage}
        for delta, finish in deltas
    ]
    if with_usage:
        chunks.append({"choices": [], "usage": reply.usage})
    lines = [json.dumps({**head, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()
