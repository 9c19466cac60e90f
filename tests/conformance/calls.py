"""Owns the calls that every client makes, as data both SDKs can read, and what the replay teacher has recorded of them.

Must not know which client makes them, nor where to. A call without an answer is one the replay teacher refuses.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.traffic_file import Row
from tests.conformance.langchain_rows import langchain_rows

MODEL = "gpt-4o"
KEY = "sk-conformance"

_PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
_TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather at a place.", "parameters": _PLACE}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
_WEATHER = [{"name": "weather", "arguments": {"place": "Tromsø"}}]
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "where", "strict": True, "schema": _PLACE}}
_CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Oslo"}'}}
_USAGE = {"include_usage": True}
_FAULTS = (401, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class Call:
    """`method` is a path both SDKs have. Options: `positional` arguments, `key`, `timeout` in seconds, `retries`,
    `headers`, `stop_after` so many chunks, `times` one after the other, `at_once`."""

    name: str
    method: str
    arguments: Mapping[str, Any]
    answer: str | list[dict[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def all_calls() -> list[Call]:
    """Every call, names unique."""
    return [*_texts(), *_formats(), *_tools(), *_conversations(), *_refused(), *_connections(), *_other_endpoints()]


def recorded() -> list[Row]:
    """The replay teacher's traffic."""
    rows = [*langchain_rows()]
    for call in all_calls():
        if call.answer is not None and call.method == "chat.completions.create":
            text = call.answer if isinstance(call.answer, str) else None
            calls = None if text is not None else tuple(_recorded_call(call.answer))
            tools = call.arguments.get("tools")
            rows.append(Row(tuple(call.arguments["messages"]), text, calls, MODEL, tuple(tools) if tools else None))
    seen: dict[str, Row] = {}  # One answer a prompt, or two askers would get different ones.
    for row in rows:
        seen.setdefault(repr((row.messages, row.tools)), row)
    return list(seen.values())


def _recorded_call(calls: Any) -> Iterator[dict[str, Any]]:
    for call in calls:
        yield {"name": call["name"], "arguments": call["arguments"]}


def _chat(name: str, messages: Any, answer: Any = None, options: Mapping[str, Any] = {}, **more: Any) -> Call:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    arguments = {"model": MODEL, "messages": turns, "temperature": 0, "seed": 7, "max_tokens": 8, **more}
    return Call(name, "chat.completions.create", arguments, answer, options)


def _texts() -> Iterator[Call]:
    greet = ("Say hello.", "Hello there,\nand good  morning! ")
    yield _chat("plain", *greet)
    yield _chat("stream", *greet, stream=True)
    yield _chat("stream with usage", *greet, stream=True, stream_options=_USAGE)
    yield _chat("stream without usage", *greet, stream=True, stream_options={"include_usage": False})
    two = {"n": 2, "temperature": 1, "top_p": 1e-6}  # vLLM refuses several answers at temperature 0
    yield _chat("n=2", *greet, **two)
    yield _chat("n=2, stream", *greet, **two, stream=True)
    yield _chat("logprobs", *greet, logprobs=True, top_logprobs=3)
    yield _chat("logprobs, stream", *greet, logprobs=True, top_logprobs=2, stream=True)
    yield _chat("stop", *greet, stop=["e", "\n"])
    yield _chat("max_tokens=1", *greet, max_tokens=1)
    yield _chat("max_completion_tokens", *greet, max_completion_tokens=3)
    yield _chat("unknown fields", *greet, metadata={"a": "b"}, user="someone", store=False, service_tier="auto")
    signs = ("Repeat: äöü € 🙂 日本語 \u2028 \x7f", "äöü € 🙂 日本語 \u2028 \x7f\t")
    yield _chat("unicode", *signs)
    yield _chat("unicode, stream", *signs, stream=True)
    large = ("All work and no play. " * 250, "Play.")
    yield _chat("large prompt", *large)
    yield _chat("large prompt, stream", *large, stream=True)
    yield _chat("prompt too large for the model", "work " * 400_000, "Too much work.")


def _formats() -> Iterator[Call]:
    where = ("Where is it? Answer in JSON.", '{"place": "Åre"}')
    yield _chat("JSON schema", *where, response_format=_SCHEMA)
    yield _chat("JSON schema, stream", *where, response_format=_SCHEMA, stream=True)
    yield _chat("JSON object", *where, response_format={"type": "json_object"})
    yield _chat("text format", *where, response_format={"type": "text"})


def _tools() -> Iterator[Call]:
    asked = ("What is the weather in Tromsø?", _WEATHER)
    named = {"type": "function", "function": {"name": "weather"}}
    yield _chat("tools, auto", *asked, tools=_TOOLS)
    yield _chat("tools, auto, stream", *asked, tools=_TOOLS, tool_choice="auto", stream=True)
    yield _chat("tools, required", *asked, tools=_TOOLS, tool_choice="required", max_tokens=40)
    yield _chat("tools, required, stream", *asked, tools=_TOOLS, tool_choice="required", stream=True, max_tokens=40)
    yield _chat("tools, named", *asked, tools=_TOOLS, tool_choice=named)
    yield _chat(
        "tools, named, stream, usage", *asked, tools=_TOOLS, tool_choice=named, stream=True, stream_options=_USAGE
    )
    yield _chat("tools, none", *asked, tools=_TOOLS, tool_choice="none")
    yield _chat("tools, not parallel", *asked, tools=_TOOLS, parallel_tool_calls=False)


def _conversations() -> Iterator[Call]:
    user, brief = {"role": "user", "content": "Who are you?"}, "Be brief."
    yield _chat("system message", [{"role": "system", "content": brief}, user], "A still.")
    yield _chat("developer message", [{"role": "developer", "content": brief}, user], "A still.")
    turns = [user, {"role": "assistant", "content": "A still."}, {"role": "user", "content": "Whose?", "name": "ann"}]
    yield _chat("several turns", turns, "Yours.")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Who"}, {"type": "text", "text": " is it?"}]}]
    yield _chat("content parts", parts, "Me.")
    asked = {"role": "assistant", "content": None, "tool_calls": [_CALLED]}
    told = [user, asked, {"role": "tool", "tool_call_id": "call_1", "content": "-3 °C"}]
    yield _chat("tool message", told, "It is cold.", tools=_TOOLS)
    yield _chat("tool message, stream", told, "It is cold.", tools=_TOOLS, stream=True)


def _refused() -> Iterator[Call]:
    greet = ("Say hello.", None)
    yield _chat("unknown prompt", "Never recorded.")
    yield _chat("unknown prompt, stream", "Never recorded.", stream=True)
    yield _chat("unknown model", *greet, model="no-such-model")
    yield _chat("unknown model, stream", *greet, model="no-such-model", stream=True)
    yield _chat("wrong key", *greet, {"key": "sk-wrong"})
    yield _chat("wrong key, stream", *greet, {"key": "sk-wrong"}, stream=True)
    yield _chat("no messages", [])
    yield _chat("messages of a wrong type", [{"role": "user", "content": {"a": 1}}])
    yield _chat("temperature of a wrong type", *greet, temperature="hot")
    yield _chat("n=0", *greet, n=0)
    yield _chat("stream of a wrong type", *greet, stream="perhaps")
    yield _chat("usage without a stream", *greet, stream_options=_USAGE)
    yield _chat("stream_options of a wrong type", *greet, stream=True, stream_options=["include_usage"])
    for status in _FAULTS:
        yield _chat(f"upstream {status}", *greet, {"headers": {"x-replay-status": str(status)}})
    yield _chat("upstream 503, stream", *greet, {"headers": {"x-replay-status": "503"}}, stream=True)
    yield _chat("upstream 500, one retry", *greet, {"headers": {"x-replay-status": "500"}, "retries": 1})


def _connections() -> Iterator[Call]:
    greet, long = ("Say hello.", None), ("Tell a long story.", "Once upon a time, " * 40)
    # A model sends a stream's head at once, but needs seconds to read this; the replay teacher waits before either.
    tedious = "All work and no play. " * 250
    slow = (tedious, "A dull boy.", {"timeout": 0.5, "headers": {"x-replay-latency": "5"}})
    yield _chat("stream, the client leaves", *long, {"stop_after": 3}, stream=True, max_tokens=24)
    yield _chat("the client does not wait", *slow)
    yield _chat("the client does not wait, stream", *slow, stream=True)
    yield _chat("five over one connection", *greet, {"times": 5}, max_tokens=2)
    yield _chat("eight at once", *greet, {"at_once": 8}, max_tokens=4)
    yield _chat("eight streams at once", *greet, {"at_once": 8}, max_tokens=4, stream=True)


def _other_endpoints() -> Iterator[Call]:
    prompt = {"model": MODEL, "prompt": "Once upon", "temperature": 0, "seed": 7, "max_tokens": 8}
    yield Call("completions", "completions.create", prompt)
    yield Call("completions, stream", "completions.create", {**prompt, "stream": True})
    yield Call("completions, stream, usage", "completions.create", {**prompt, "stream": True, "stream_options": _USAGE})
    yield Call("completions, logprobs, echo", "completions.create", {**prompt, "logprobs": 2, "echo": True})
    response = {"model": MODEL, "input": "Say hello.", "temperature": 0, "max_output_tokens": 8}
    yield Call("responses", "responses.create", response)
    yield Call("responses, stream", "responses.create", {**response, "stream": True})
    yield Call("responses, instructions", "responses.create", {**response, "instructions": "Be brief."})
    yield Call("responses, unknown id", "responses.retrieve", {}, None, {"positional": ["resp_unknown"]})
    yield Call("embeddings", "embeddings.create", {"model": MODEL, "input": ["a", "ä"], "encoding_format": "float"})
    yield Call("models", "models.list", {})
    yield Call("one model", "models.retrieve", {}, None, {"positional": [MODEL]})
    yield Call("no such model", "models.retrieve", {}, None, {"positional": ["no/such model"]})
    upload = {"file": {"$file": ["rows.jsonl", '{"ä": 1}\n']}, "purpose": "batch"}
    yield Call("file upload", "files.create", upload)
    yield Call("delete a file", "files.delete", {}, None, {"positional": ["file-unknown"]})
    yield Call("moderations", "moderations.create", {"input": "Hello."})
