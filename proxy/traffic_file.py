"""Owns the recorded-traffic file: JSON lines, one exchange a row. Must not know who reads it, or over which wire.

A row is a JSON object. Read here: `messages` (OpenAI chat format), `teacher_output`, `teacher_model`, optional `tools`.
Other keys (`gold`, `source`, `meta`) describe the row to people and are left alone. `teacher_output` is one of

* a string: the text of the answer,
* a list of tool calls, each as OpenAI writes it or as `{"name": ..., "arguments": ...}`,
* an object: an assistant message with `content` and/or `tool_calls`, or a single tool call,
* where the row offers `tools`, a string that holds such a list of tool calls as JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from proxy.errors import BadInput


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded exchange; `tool_calls` are in OpenAI's form, with `arguments` as a JSON string."""

    messages: tuple[dict[str, Any], ...]
    answer: str | None
    tool_calls: tuple[dict[str, Any], ...] | None
    model: str
    tools: tuple[dict[str, Any], ...] | None


def read_traffic(path: str | Path) -> list[Row]:
    """All rows of a file, in order; `BadInput` names the file, the line and what to do, and nothing is skipped."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give the path of a JSON lines file") from error
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise BadInput(f"{path}: is empty; record some traffic first, or give another file")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_row(line))
        except BadInput as error:
            raise BadInput(f"{path}, line {number}: {error}") from error
    return rows


def parse_row(line: bytes) -> Row:
    """One line of the file; `BadInput` says what is wrong with it and what it should be."""
    try:
        record = json.loads(line)
    except ValueError as error:  # json's own and UnicodeDecodeError
        raise BadInput(f"not valid JSON ({error}); write one JSON object a line, in UTF-8") from error
    if not isinstance(record, dict):
        raise BadInput("not a JSON object; write one object with messages, teacher_output and teacher_model a line")
    messages = _objects(record.get("messages"), "messages")
    for message in messages:
        _check_message(message)
    tools = None if record.get("tools") in (None, []) else _objects(record["tools"], "tools")
    model = record.get("teacher_model")
    if not isinstance(model, str) or not model:
        raise BadInput("teacher_model is missing; name the model that gave the answer")
    answer, calls = _answer(record.get("teacher_output"), bool(tools))
    seed = json.dumps([messages, tools], sort_keys=True)
    tool_calls = tuple(_tool_call(call, f"{seed}{index}") for index, call in enumerate(calls)) or None
    return Row(messages, answer, tool_calls, model, tools)


def message_text(message: dict[str, Any]) -> str | None:
    """The text of a message, its text parts joined ("" for no content); None where a part is no text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    return None


def _objects(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """A non-empty list of JSON objects, or an error that names the field."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise BadInput(f"{name} is not a list of objects; write it as the chat completions API takes it")
    return tuple(value)


def _check_message(message: dict[str, Any]) -> None:
    if not isinstance(message.get("role"), str):
        raise BadInput("a message has no role; write system, developer, user, assistant or tool")
    if not isinstance(message.get("content"), str | list | None):
        raise BadInput("the content of a message is neither text nor a list of parts; write one of them")
    for call in message.get("tool_calls") or ():
        _tool_call(call, "")


def _answer(output: Any, has_tools: bool) -> tuple[str | None, Sequence[Any]]:
    """The answer's text and its raw tool calls."""
    if isinstance(output, str):
        calls = _calls_in_text(output) if has_tools else []
        return (None if calls else output), calls
    if isinstance(output, list) and output:
        return None, output
    if isinstance(output, dict) and ("name" in output or "function" in output):
        return None, [output]
    if isinstance(output, dict):
        text, calls = output.get("content"), output.get("tool_calls") or []
        if isinstance(text, str | None) and isinstance(calls, list) and (text is not None or calls):
            return text, calls
    raise BadInput("teacher_output is no answer; write a string, a list of tool calls or an assistant message")


def _calls_in_text(text: str) -> list[Any]:
    """The tool calls a text spells as a JSON list of exactly `name` and `arguments`; [] for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return []
    if isinstance(value, list) and all(isinstance(call, dict) and set(call) == {"name", "arguments"} for call in value):
        return value
    return []


def _tool_call(call: Any, seed: str) -> dict[str, Any]:
    """A tool call in OpenAI's form; a missing id is derived from `seed`, so that two readings agree."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadInput("a tool call has no function name; write it as the chat completions API answers it")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    name = call.get("id") or f"call_{sha256(seed.encode()).hexdigest()[:24]}"
    return {"id": name, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
