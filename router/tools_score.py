"""Owns how two answers that may call tools are compared, also where no call is right.

Must not know tasks or settings; what an argument means is read from the request's own tools. Calling nothing, twice, is
full agreement about calling nothing: the texts beside it are not compared, and a certificate of such verdicts says
nothing about them. Calls match in any order, for an API runs parallel calls in none.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.json_score import Flat, Places, agreement, flat, resolve, unordered
from router.matching import best_pairs
from router.said import Call, Said

DEPTH = 50  # of arguments that are read by their schema; deeper ones are compared as they are
PAIRS = 10_000  # of calls that are looked at; beyond, only equal calls are a pair


@dataclass(frozen=True, slots=True)
class _Read:
    """A call as it is compared; `arguments` are None where it could not be made at all."""

    name: str
    arguments: Flat | None


def tools_agreement(request: Mapping[str, Any], teacher: Said, candidate: Said) -> float:
    """F1 over calls, in [0, 1]: a call is as right as its arguments are, a call of another tool is wrong."""
    if not teacher.tool_calls and not candidate.tool_calls:
        return 1.0
    schemas, places = _schemas(request), Places()
    wanted, given = ([_read(call, schemas, places) for call in said.tool_calls] for said in (teacher, candidate))
    if len(wanted) * len(given) > PAIRS:
        return 2 * _equal(wanted, given) / (len(wanted) + len(given))
    worth = [[_worth(one, other) for other in given] for one in wanted]
    right = math.fsum(worth[i][j] for i, j in best_pairs(worth))
    return min(2 * right / (len(wanted) + len(given)), 1.0)


def callable_as_said(said: Said) -> bool:
    """Whether every call has a name and arguments, or there is a text instead."""
    if said.tool_calls:
        return all(call.name and call.arguments is not None for call in said.tool_calls)
    return bool((said.text or "").strip())


def by_schema(value: Any, node: object, schema: object, depth: int = DEPTH) -> Any:
    """The value as a tool would take it: a missing argument is its default, and a value has the type that is asked for.

    "5" is 5 and "true" is true only where the schema wants a number or a boolean, 5 is "5" where it wants a string, and
    case does not matter only where `enum` lists the one value that is meant. What does not fit is left as it is.
    """
    rules = resolve(node, schema)
    if depth == 0 or not rules:
        return value
    if isinstance(value, dict):
        return _members(value, rules, schema, depth - 1)
    if isinstance(value, list):
        items = rules.get("items")
        return [by_schema(member, items, schema, depth - 1) for member in value]
    return _of_enum(_typed(value, rules), rules)


def _members(value: Mapping[str, Any], rules: Mapping[str, Any], schema: object, depth: int) -> dict[str, Any]:
    properties = rules.get("properties")
    if not isinstance(properties, dict):
        return dict(value)
    asked = {key: by_schema(member, properties.get(key), schema, depth) for key, member in value.items()}
    for key, node in properties.items():
        inner = resolve(node, schema)
        if key not in value and "default" in inner:
            asked[key] = by_schema(inner["default"], inner, schema, depth)
    return asked


def _typed(value: Any, rules: Mapping[str, Any]) -> Any:
    kinds = rules.get("type")
    wanted = {kinds} if isinstance(kinds, str) else set(map(str, kinds)) if isinstance(kinds, list) else set()
    wanted.discard("null")
    if isinstance(value, str) and wanted <= {"integer", "number"} and wanted:
        return _number(value)
    if isinstance(value, str) and wanted == {"boolean"}:
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    if wanted == {"string"} and isinstance(value, bool):
        return str(value).lower()
    if wanted == {"string"} and isinstance(value, int | float):
        return str(int(value) if isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53) else value)
    return value


def _number(text: str) -> Any:
    """The number a text spells as JSON does; the text where it spells none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return value if number else text


def _of_enum(value: Any, rules: Mapping[str, Any]) -> Any:
    listed = rules.get("enum")
    if not isinstance(value, str) or not isinstance(listed, list) or value in listed:
        return value
    meant = [one for one in listed if isinstance(one, str) and one.casefold() == value.strip().casefold()]
    return meant[0] if len(meant) == 1 else value


def _schemas(request: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of each tool's arguments, by name; what is not written as a tool has none."""
    offered = request.get("tools")
    found: dict[str, Any] = {}
    for tool in offered if isinstance(offered, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            found[function["name"]] = function.get("parameters")
    return found


def _read(call: Call, schemas: Mapping[str, Any], places: Places) -> _Read:
    if call.arguments is None:
        return _Read(call.name, None)
    schema = schemas.get(call.name)
    return _Read(call.name, flat(by_schema(call.arguments, schema, schema), unordered(schema), places))


def _worth(wanted: _Read, given: _Read) -> float:
    if wanted.name != given.name or wanted.arguments is None or given.arguments is None:
        return 0.0
    _, same = agreement(wanted.arguments, given.arguments)
    return 2 * same / (wanted.arguments.size + given.arguments.size)


def _equal(wanted: list[_Read], given: list[_Read]) -> int:
    """How many calls find one that is equal."""
    counts = [Counter((one.name, one.arguments.key) for one in side if one.arguments) for side in (wanted, given)]
    return (counts[0] & counts[1]).total()
