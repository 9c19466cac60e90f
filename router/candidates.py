"""Owns asking a candidate: the request it gets, the confidence of its answer, the checks before it may go out.

The same function serves shadow and live traffic, so that what was judged is what is served. Must not decide whether a
candidate is asked at all. A student is shown what varies, and says how sure it is. A hosted model reads the client's
own messages and says nothing of that kind, so that all its well-formed answers are certified together: it counts as
sure. Only OpenAI-compatible ones are spoken to.
"""

import json
import os
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
# What a hosted model is told of a request beside its messages; whose user asks is not its business.
_PASSED_ON = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "response_format", "seed", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip
# Reasons that others tell apart: how a fallback begins in the log.
UNREACHABLE, UNSURE, MALFORMED = "candidate unreachable", "unsure", "answer breaks the format"
UNAVAILABLE = "provider unavailable"  # Of a hosted model: it says nothing about the exchange. Live it is a failure.
CUT_OFF = "candidate stopped with"
_UNAVAILABLE = (401, 402, 403, 404, 408, 429)  # And all from 500 on.
CHANGED = "template changed"  # As a decision's reason ends, and a verdict's error.
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
# What reading a message or an answer of another shape than expected may raise.
_SHAPE_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, BadInput)


@dataclass(frozen=True, slots=True)
class Reply:
    """A candidate's answer before any check; `confidence` in [0, 1], calibrated where the candidate is.

    `usage` is the client's to see, None where the provider told none. `finish` is why the answer ended.
    """

    text: str
    confidence: float
    usage: Mapping[str, Any] | None
    finish: str = "stop"


def teacher_only(body: Mapping[str, Any]) -> str | None:
    """Why this request is not for a candidate, or None."""
    for key in _TEACHER_ONLY:
        if body.get(key):
            return f"asks for {key}"
    if body.get("n") not in (None, 1):
        return "asks for several choices"
    return None


async def ask(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    """Ask for one answer, a student greedily and for its tokens' probabilities; CandidateFailed when it errs.

    That it is cut off is a failure of a student here, and of a hosted model in `check`, as that answer is paid for.
    """
    return await (_ask_hosted if route.model else _ask_student)(session, route, body)


async def _ask_student(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    payload = {
        "model": route.candidate,
        "messages": _messages(route, body),
        "temperature": 0,
        "max_tokens": route.max_tokens,
        "logprobs": True,
    }
    status, raw = await _post(session, route, f"{route.url}/v1/chat/completions", payload, {}, UNREACHABLE)
    if status >= 500:
        raise CandidateFailed(f"{UNREACHABLE}: HTTP {status}")  # As an engine that dies says it.
    if status != 200:
        raise CandidateFailed(f"candidate answered {status}")
    return _reply(raw, route.calibration)


async def _ask_hosted(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    if not body.get("messages"):
        raise CandidateFailed("unreadable request")
    payload = {key: body[key] for key in _PASSED_ON if body.get(key) is not None}
    payload |= {"model": route.model, "messages": body["messages"]}
    headers = _authorization(route.key_env)
    status, raw = await _post(session, route, f"{route.url}/chat/completions", payload, headers, UNAVAILABLE)
    if status >= 500 or status in _UNAVAILABLE:
        raise CandidateFailed(f"{UNAVAILABLE}: HTTP {status}")
    if status != 200:
        raise CandidateFailed(f"candidate answered {status}")
    return _hosted_reply(raw)


async def _post(
    session: aiohttp.ClientSession,
    route: Route,
    url: str,
    payload: Mapping[str, Any],
    headers: Mapping[str, str],
    gone: str,
) -> tuple[int, bytes]:
    """Status and body; a redirect is not followed, or a key would go where nobody sent it."""
    timeout = aiohttp.ClientTimeout(total=route.timeout)
    try:
        async with session.post(url, json=payload, headers=headers, timeout=timeout, allow_redirects=False) as response:
            return response.status, await response.read()
    except TimeoutError:
        raise CandidateFailed("candidate timed out") from None
    except (aiohttp.ClientError, OSError) as error:
        raise CandidateFailed(f"{gone}: {type(error).__name__}") from None


def _authorization(key_env: str) -> dict[str, str]:
    """The header with the key, read from the environment each time: it is kept nowhere."""
    if not key_env:
        return {}
    key = os.environ.get(key_env, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise CandidateFailed(f"{UNAVAILABLE}: there is no key in {key_env}")
    return {"authorization": f"Bearer {key}"}


def check(route: Route, reply: Reply) -> None:
    """Refuse an answer that is cut off, breaks the format or is less sure than what was certified: CandidateFailed."""
    if reply.finish != "stop":
        raise CandidateFailed(f"{CUT_OFF} {reply.finish}")
    if not well_formed(route.evaluator, Said(reply.text), frozenset(route.labels)):
        raise CandidateFailed(MALFORMED, reply.confidence)
    if route.threshold is not None and reply.confidence < route.threshold:
        raise CandidateFailed(UNSURE, reply.confidence)


async def answer(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Answer:
    """The candidate's checked answer in the wire form the client asked for; CandidateFailed before any byte is out."""
    reply = await ask(session, route, body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    tokens = (reply.usage or {}).get("completion_tokens")
    if isinstance(limit, int) and isinstance(tokens, int) and tokens > limit:
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
            raise CandidateFailed(f"{CUT_OFF} {choice['finish_reason']}")
        logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
        text, usage = choice["message"]["content"] or "", body.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return Reply(text, apply(calibration, confidence(logprobs)), {key: int(usage.get(key) or 0) for key in _COUNTS})
    except _SHAPE_ERRORS:
        raise CandidateFailed("candidate's answer is not a chat completion") from None


def _hosted_reply(raw: bytes) -> Reply:
    """The usage stays as the provider told it: what the answer costs is read from it."""
    try:
        body = json.loads(raw)
        choice, usage = body["choices"][0], body.get("usage")
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        finish = str(choice["finish_reason"])
        return Reply(text, 1.0, usage if isinstance(usage, dict) and usage else None, finish)
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
