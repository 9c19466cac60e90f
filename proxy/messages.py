"""Owns reading the wire form of Anthropic's Messages API, as the chat completion it amounts to.

Must not know what is derived from an exchange. What does not have the form raises what reading it raises: ValueError,
TypeError, KeyError, AttributeError; the caller decides what that means.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

_REASONS = {
    "end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length",
    "model_context_window_exceeded": "length", "refusal": "content_filter",
}  # fmt: skip
_READ, _WRITTEN = "cache_read_input_tokens", "cache_creation_input_tokens"
_OWN = (_WRITTEN, "input_tokens")  # the first also where litellm has translated from Anthropic's form
# What Anthropic asks for a token written to the prompt cache, beyond the price of a token of input.
_WRITTEN_MORE, _WRITTEN_FOR_AN_HOUR_MORE = 0.25, 1.0
WRITTEN_AT_MOST = 1 + _WRITTEN_FOR_AN_HOUR_MORE
"""The price of a token of the prompt at most, in prices of a token of input."""
USUAL = {
    "service_tier": (None, "auto", "standard", "standard_only"),
    "speed": (None, "standard"),
    "inference_geo": (None, "global", "not_available"),
}
"""What is asked for, and what was given, at the usual price."""
_TOO_MANY = 1 << 63  # for a column of the log
_DELTAS = {"text_delta": "text", "input_json_delta": "partial_json"}  # These add to the member of the same name.


def answer_as_chat(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a chat completion; its usage stays verbatim, and what has not ended has no finish reason.

    What was thought is no text of the answer, as in chat.
    """
    blocks = message["content"]
    texts = [block["text"] for block in blocks if block.get("type") == "text"]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    reason = message.get("stop_reason")
    choice = {
        "message": {"content": "".join(texts) if texts else None, "tool_calls": calls},
        "finish_reason": _REASONS.get(reason, reason) if reason else None,
    }
    return {"model": message.get("model"), "choices": [choice], "usage": message.get("usage")}


def streamed(events: Iterable[str]) -> dict[str, Any]:
    """The message of a stream; of one cut off, what came, without a stop reason.

    `events` is the data of each server-sent event. A cut may fall inside one: reading stops there. Counts of usage are
    totals so far, so that the last one given counts.
    """
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for data in events:
        try:
            event = json.loads(data)
        except ValueError:
            break
        if event["type"] == "message_start":
            message = {**event["message"], "stop_reason": None}
        elif event["type"] == "message_delta":
            given = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
            message |= {**event["delta"], "usage": {**(message.get("usage") or {}), **given}}
        else:
            _take(blocks, event)
    return {**message, "content": [blocks[place] for place in sorted(blocks)]}


def counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Token counts under the names chat has for them, where those of the prompt are counted together."""
    parts = [usage.get("input_tokens"), *(usage.get(name) or 0 for name in (_READ, _WRITTEN))]
    return {
        "prompt_tokens": sum(parts) if all(type(part) is int and part >= 0 for part in parts) else None,
        "prompt_tokens_details": {"cached_tokens": usage.get(_READ)},
        "completion_tokens": usage.get("output_tokens"),
    }


def prompt_to_pay(prompt: int | None, usage: str | None) -> int | None:
    """What a prompt costs, in tokens of input; None where that cannot be seen. `usage` is the JSON of any API's.

    Writing the prompt cache costs more than reading a prompt does. Tools that the provider runs have fees of their
    own, and some tiers, speeds and places have other prices. Never raises: a log is filled with it.
    """
    try:
        used = json.loads(usage) if usage else {}
        if prompt is None or used.keys().isdisjoint(_OWN):
            return prompt
        if any(used.get(name) not in usual for name, usual in USUAL.items()) or any(_fees(used)):
            return None
        written, by_time = used.get(_WRITTEN) or 0, used.get("cache_creation") or {}
        hour = by_time.get("ephemeral_1h_input_tokens") or 0
        more = math.ceil(written * _WRITTEN_MORE + hour * (_WRITTEN_FOR_AN_HOUR_MORE - _WRITTEN_MORE))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return prompt + more if more >= 0 and prompt + more < _TOO_MANY else None


def instructions_as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request says which task it is: system text, tools, output format."""
    tools = [tool if "input_schema" not in tool else _tool(tool) for tool in body.get("tools") or ()]
    told = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return {"messages": told, "tools": tools, "response_format": (body.get("output_config") or {}).get("format")}


def _take(blocks: dict[int, dict[str, Any]], event: Mapping[str, Any]) -> None:
    if event["type"] == "content_block_start":
        blocks[event["index"]] = dict(event["content_block"])
    elif event["type"] == "content_block_delta":
        name = _DELTAS.get(event["delta"]["type"])
        if name is not None:
            block = blocks[event["index"]]
            block[name] = (block.get(name) or "") + event["delta"][name]


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    """A call; its arguments as they were streamed, or as the JSON they are."""
    arguments = block.get("partial_json") or json.dumps(block.get("input") or {}, ensure_ascii=False)
    return {"id": block.get("id"), "type": "function", "function": {"name": block["name"], "arguments": arguments}}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    described = {"name": tool["name"], "description": tool.get("description"), "parameters": tool["input_schema"]}
    return {"type": "function", "function": described}


def _fees(usage: Mapping[str, Any]) -> Iterable[Any]:
    """What is not among the tokens: requests to the provider's tools, and work of other models or for summaries."""
    yield from (usage.get("server_tool_use") or {}).values()
    yield from (one.get("type") != "message" for one in usage.get("iterations") or ())
