"""Owns reading the wire form of OpenAI's Responses API, as the chat completion it amounts to.

Must not know what is derived from an exchange. What does not have the form raises what reading it raises: ValueError,
TypeError, KeyError, AttributeError; the caller decides what that means.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

_FINAL = ("response.completed", "response.incomplete", "response.failed")
_ITEM = ("response.output_item.added", "response.output_item.done")  # The item as it began, and as it is when whole.
_REASONS = {"max_output_tokens": "length"}  # The others have the same name in chat.
_ELSEWHERE = ("previous_response_id", "conversation", "prompt")  # Parts of the prompt that only the provider holds.


def answer_as_chat(response: Mapping[str, Any]) -> dict[str, Any]:
    """A response object as a chat completion; its usage stays verbatim, and what has not ended has no finish reason.

    A refusal is no text of the answer, as in chat, where it stands beside the content.
    """
    output = response["output"]
    contents = [item["content"] for item in output if item.get("type") == "message"]
    texts = [part["text"] for content in contents for part in content if part.get("type") == "output_text"]
    calls = [_call(item) for item in output if item.get("type") == "function_call"]
    message = {"content": "".join(texts) if texts else None, "tool_calls": calls}
    choice = {"message": message, "finish_reason": _finish_reason(response, bool(calls))}
    return {"model": response.get("model"), "choices": [choice], "usage": response.get("usage")}


def streamed(events: Iterable[str]) -> dict[str, Any]:
    """The response object of a stream, from its final event; of one cut off, what came, still in progress.

    `events` is the data of each server-sent event. A cut may fall inside one: reading stops there.
    """
    begun: Mapping[str, Any] = {}
    items: dict[int, Any] = {}
    for data in events:
        try:
            event = json.loads(data)
        except ValueError:  # Also the [DONE] of chat, which some servers send here too.
            break
        kind = event.get("type")
        if kind in _FINAL:  # Some servers leave its output empty, having sent the items.
            return {**event["response"], "output": event["response"].get("output") or _in_order(items)}
        if kind == "response.created":
            begun = event["response"]
        _take(items, event)
    return {**begun, "output": _in_order(items), "status": "in_progress"}


def counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Token counts under the names chat has for them."""
    return {
        "prompt_tokens": usage.get("input_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details"),
        "completion_tokens": usage.get("output_tokens"),
    }


def request_as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Messages and tools of a request; ValueError or KeyError where parts of the prompt cannot be seen."""
    if any(body.get(key) for key in _ELSEWHERE):
        raise ValueError("only the provider knows the whole prompt")
    asked = body["input"]
    told = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else [_message(item) for item in asked]
    return {"messages": told + turns, "tools": body.get("tools")}


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    if item.get("type") == "function_call":
        return {"role": "assistant", "tool_calls": [_call(item)]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "content": item["output"]}
    return {"role": item["role"], "content": item["content"]}


def _take(items: dict[int, Any], event: Mapping[str, Any]) -> None:
    kind, place = event.get("type"), event.get("output_index", 0)
    if kind in _ITEM:
        items[place] = event["item"]
    elif kind == "response.output_text.delta":
        item = items.setdefault(place, {"type": "message", "content": []})
        item["content"].append({"type": "output_text", "text": event["delta"]})
    elif kind == "response.function_call_arguments.delta":
        items[place]["arguments"] += event["delta"]


def _in_order(items: Mapping[int, Any]) -> list[Any]:
    return [items[place] for place in sorted(items)]


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _finish_reason(response: Mapping[str, Any], calls: bool) -> str | None:
    status = response.get("status")
    if status == "completed":
        return "tool_calls" if calls else "stop"
    if status != "incomplete":  # failed, cancelled, queued, in progress
        return None
    reason: str | None = (response.get("incomplete_details") or {}).get("reason")
    return _REASONS.get(reason, reason) if reason else None
