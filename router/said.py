"""Owns what a model said: text, or calls of tools with their arguments, as the log keeps it and as the wire carries it.

Must not know how two of them are compared, or who said it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool; `arguments` are None where they are no JSON object, and then no tool could be called so."""

    name: str
    arguments: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text, None where there is none, and the tools it calls, in the order of the answer."""

    text: str | None
    tool_calls: tuple[Call, ...] = ()

    @property
    def plain(self) -> str | None:
        """The text of an answer that calls nothing; None for one that does: whoever compares texts cannot judge it."""
        return None if self.tool_calls else self.text or ""


def from_log(answer: str | None, tool_calls: str | None) -> Said:
    """From the columns of an exchange; calls that cannot be read stay calls, without arguments."""
    return Said(answer, _calls(_json(tool_calls)) if tool_calls else ())


def from_message(message: Mapping[str, Any]) -> Said:
    """From the message of a chat completion, as it came over the wire."""
    text = message.get("content")
    return Said(text if isinstance(text, str) else None, _calls(message.get("tool_calls") or []))


def _calls(found: object) -> tuple[Call, ...]:
    """A call for each there is, whatever its shape: none may get lost, or it would count as no call at all."""
    return tuple(_call(one) for one in found) if isinstance(found, list) else (Call("", None),)


def _call(found: object) -> Call:
    function = found.get("function") if isinstance(found, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return Call("", None)
    arguments = function.get("arguments")
    parsed = _json(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    return Call(function["name"], parsed if isinstance(parsed, dict) else None)


def _json(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
