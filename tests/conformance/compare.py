"""Owns what is the same: results as leaves, less what an upstream makes anew each time, compared leaf by leaf.

Must not know who called whom. An upstream is asked directly more than once: a leaf that differs between two direct
answers says nothing about the proxy, and is excluded and counted. Several choices in one stream are generated beside
each other, and how their chunks interleave changes from call to call: they are compared choice by choice.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_MISSING = "(not there)"
_TIMES = frozenset({"created", "created_at", "completed_at"})
_ID = re.compile(r"\b(chatcmpl(?:-tool)?|cmpl|resp|msg|call|fc|rs|req)[-_][0-9A-Za-z][\w-]{7,}")
_WRITTEN_TIME = re.compile(r'"created(?:_at)?": ?[\d.]+')
# Framing belongs to each connection. The length of a body says what is compared anyway, where ids are not as long.
_NOT_COMPARED = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
_OWN = "x-stillroom-"

Leaves = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One call: what it came to on either side, differences as path -> (direct, through), and what is excluded."""

    outcome: str
    differences: dict[str, tuple[Any, Any]]
    excluded: frozenset[str]


def compare(direct: Sequence[Any], through: Any) -> Comparison:
    """Compare results of one call: several from the upstream itself, one from the proxy."""
    straight, other = [leaves(result) for result in direct], leaves(through)
    first = straight[0]
    unstable = {path for one in straight for path in one.keys() | first.keys() if _at(one, path) != _at(first, path)}
    lists = tuple(path.removesuffix("length") for path in unstable if path.endswith(".length"))
    differing = {path for path in first.keys() | other.keys() if _at(first, path) != _at(other, path)}
    excluded = {path for path in differing | unstable if path in unstable or path.startswith(lists)}
    differences = {path: (_at(first, path), _at(other, path)) for path in sorted(differing - excluded)}
    return Comparison(outcome(direct[0]), differences, frozenset(excluded))


def leaves(result: Any) -> Leaves:
    """Every value of a result under its path; lists have a length besides, objects their order."""
    return dict(_leaves("", result))


def outcome(result: Any) -> str:
    """`passed`, `failed` or `skipped`; of several calls that were made as one, failed if any did."""
    parts = result if isinstance(result, list) else result.get("results", [result])
    if any("raised" in part for part in parts):
        return "failed"
    return "skipped" if any("skipped" in part for part in parts) else "passed"


def _at(found: Leaves, path: str) -> Any:
    return found.get(path, _MISSING)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield f"{path}.keys", list(value) if not path.endswith(".headers") else None
        for key, entry in value.items():
            if not (path.endswith(".headers") and _skipped(key)):
                yield from _leaves(f"{path}.{key}", _steady(path, key, entry))
    elif isinstance(value, list):
        yield f"{path}.length", len(value)
        for index, entry in enumerate(sorted(value, key=_choice) if path.endswith(".chunks") else value):
            yield from _leaves(f"{path}.{index}", entry)
    else:
        yield path, _steady_text(value) if isinstance(value, str) else value


def _choice(chunk: Any) -> float:
    """Which choice a chunk belongs to; those of none, such as the usage, come last."""
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    return choices[0].get("index", math.inf) if choices else math.inf


def _skipped(header: str) -> bool:
    return header in _NOT_COMPARED or header.startswith(_OWN)


def _steady_text(text: str) -> str:
    """The text without ids, and without the times where it is a body an SDK did not parse."""
    return _WRITTEN_TIME.sub("", _ID.sub(r"\1", text))


def _steady(path: str, key: str, value: Any) -> Any:
    """The value, or only its type where it tells the time."""
    return type(value).__name__ if key in _TIMES or (path.endswith(".headers") and key == "date") else value
