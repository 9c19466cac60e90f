"""Owns what is derived from an exchange's raw bodies: task, model, answer, tokens.

Raw bodies stay as they were; everything here can be computed again. A body this module cannot read is kept raw and
derives to nothing: it must never raise for what a client or an upstream sent.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy import messages
from proxy.errors import BadInput
from proxy.responses import answer_as_chat, counts, request_as_chat, streamed
from proxy.tasks import task_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
PAID = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)
"""What is read for its tokens, and so has a price."""
# From a request's body, an answer's text and its tool calls to prompt and completion tokens.
Estimate = Callable[[Mapping[str, Any], str | None, Sequence[Any]], tuple[int, int]]
# Called with model, prompt tokens, cached tokens, completion tokens; US dollars, or None for unpriced.
Price = Callable[[str | None, int | None, int | None, int | None], float | None]
_SHAPE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, BadInput)


@dataclass(frozen=True, slots=True)
class Derived:
    """Columns of the log; None where unknown. `usage` is the provider's own object as JSON, verbatim in content.

    `model` is the one that was asked, `answered_model` who the answer says it is from.
    """

    task: str | None = None
    model: str | None = None
    answer: str | None = None
    tool_calls: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    usage: str | None = None
    usage_source: str | None = None
    ended: bool = True
    answered_model: str | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    model: str | None
    answer: str | None
    tool_calls: list[Any]
    finish_reason: str | None
    usage: Mapping[str, Any] | None
    ended: bool


def derive(
    path: str,
    task_header: str | None,
    request: str,
    status: int,
    stream: bool,
    response: str,
    estimate: Estimate | None = None,
) -> Derived:
    """Derive the columns of one exchange from its decoded bodies.

    `estimate` counts tokens where the provider sent no usage; such counts are marked, and never replace given ones.
    """
    path = path.rstrip("/")
    if path not in PAID:
        return Derived(task=None)
    task, asked_model = _request(path, request, task_header)
    if status != 200:
        return Derived(task=task, model=asked_model)
    try:
        reply = _reply(path, stream, response)
        return _columns(task, asked_model, reply, _usage(path, request, reply, estimate))
    except _SHAPE_ERRORS:
        return Derived(task=task, model=asked_model, ended=not stream)


def _reply(path: str, stream: bool, response: str) -> _Reply:
    if path == RESPONSES:
        reply = _from_object(answer_as_chat(streamed(_events(response)) if stream else json.loads(response)))
        return replace(reply, ended=reply.finish_reason is not None)
    if path == MESSAGES:
        message = messages.streamed(_events(response)) if stream else json.loads(response)
        reply = _from_object(messages.answer_as_chat(message))
        return replace(reply, ended=not stream or reply.finish_reason is not None)
    if path == EMBEDDINGS:
        body = json.loads(response)
        return _Reply(body.get("model"), None, [], None, body.get("usage"), True)
    return _from_stream(response) if stream else _from_object(json.loads(response))


def _usage(
    path: str, request: str, reply: _Reply, estimate: Estimate | None
) -> tuple[Mapping[str, Any] | None, str | None]:
    """Token counts, named as in chat, and where they come from."""
    if reply.usage:
        if path == MESSAGES:
            return _of_message(reply, estimate)
        if path == RESPONSES:
            return counts(reply.usage), "provider"
        return ({"completion_tokens": 0, **reply.usage} if path == EMBEDDINGS else reply.usage), "provider"
    if estimate is None or (reply.answer is None and not reply.tool_calls):
        return None, None
    try:
        prompt, completion = _estimated(path, json.loads(request), reply, estimate)
    except _SHAPE_ERRORS:  # No count, and nothing else lost.
        return None, None
    return {"prompt_tokens": prompt, "completion_tokens": completion}, "estimated"


def _of_message(reply: _Reply, estimate: Estimate | None) -> tuple[Mapping[str, Any], str]:
    """Of a stream cut off the prompt is counted, and its answer is not yet."""
    counted = messages.counts(reply.usage or {})
    if reply.ended:
        return counted, "provider"
    if estimate is None:
        return {**counted, "completion_tokens": None}, "provider"
    _, came = estimate({}, _text(reply.answer), reply.tool_calls)
    return {**counted, "completion_tokens": max(came, _count(counted, "completion_tokens") or 0)}, "estimated"


def _estimated(path: str, body: Mapping[str, Any], reply: _Reply, estimate: Estimate) -> tuple[int, int]:
    answer = _text(reply.answer)
    if path == COMPLETIONS:  # A bare prompt is not framed as messages are: it counts as an answer's text does.
        return estimate({}, _one_prompt(body), ())[1], estimate({}, answer, ())[1]
    return estimate(request_as_chat(body) if path == RESPONSES else body, answer, reply.tool_calls)


def _one_prompt(body: Mapping[str, Any]) -> str:
    """The prompt of a plain completion; BadInput for several, or tokens."""
    prompt = _text(body["prompt"])
    if prompt is None:
        raise BadInput("the prompt is not one text; the tokens of others are not estimated")
    return prompt


def _request(path: str, request: str, task_header: str | None) -> tuple[str | None, str | None]:
    try:
        body = json.loads(request)
        told = messages.instructions_as_chat(body) if path == MESSAGES else body
        return task_of(told, task_header), _text(body.get("model"))
    except _SHAPE_ERRORS:
        return None, None


def _columns(
    task: str | None, asked_model: str | None, reply: _Reply, counted: tuple[Mapping[str, Any] | None, str | None]
) -> Derived:
    usage, source = counted
    return Derived(
        task=task,
        model=asked_model or _text(reply.model),
        answer=_text(reply.answer),
        tool_calls=json.dumps(reply.tool_calls) if reply.tool_calls else None,
        finish_reason=_text(reply.finish_reason),
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_tokens=_count((usage or {}).get("prompt_tokens_details"), "cached_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        usage=json.dumps(reply.usage) if reply.usage else None,
        usage_source=source,
        ended=reply.ended,
        answered_model=_text(reply.model),
    )


def _from_object(body: Mapping[str, Any]) -> _Reply:
    choice = body["choices"][0]
    message = choice["message"] if "message" in choice else {"content": choice["text"]}  # A plain completion.
    return _Reply(
        model=body.get("model"),
        answer=message.get("content"),
        tool_calls=message.get("tool_calls") or [],
        finish_reason=choice.get("finish_reason"),
        usage=body.get("usage"),
        ended=True,
    )


def _from_stream(text: str) -> _Reply:
    """Reassemble choice 0 of a chunked answer; usage is taken from whichever chunk carries it."""
    content: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    model = finish = usage = None
    ended = False
    for data in _events(text):
        if data == "[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        model, usage = chunk.get("model") or model, chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            if choice.get("index", 0) == 0:
                delta = choice.get("delta") or {"content": choice.get("text")}
                content.append(delta.get("content") or "")
                _merge_calls(calls, delta.get("tool_calls") or [])
                finish = choice.get("finish_reason") or finish
    tool_calls = [calls[index] for index in sorted(calls)]
    answer = "".join(content) if any(content) or not tool_calls else None
    return _Reply(model, answer, tool_calls, finish, usage, ended)


def _events(text: str) -> Iterator[str]:
    """The data of each server-sent event; one line a piece, as OpenAI-compatible servers send them."""
    for line in text.split("\n"):  # Not splitlines: JSON may hold a raw U+2028.
        if line.startswith("data:"):
            yield line[5:].strip()


def _merge_calls(calls: dict[int, dict[str, Any]], deltas: list[Any]) -> None:
    for delta in deltas:
        call = calls.setdefault(delta["index"], {"type": "function", "function": {"name": "", "arguments": ""}})
        if delta.get("id"):
            call["id"] = delta["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _count(usage: Mapping[str, Any] | None, key: str) -> int | None:
    value = (usage or {}).get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _text(value: object) -> str | None:
    """A string the log can hold: JSON may spell half a surrogate pair, which is no character; two halves make one."""
    if not isinstance(value, str):
        return None
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
