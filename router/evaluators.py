"""Owns how one comparison is scored: two answers in, one verdict in [0, 1] out, by the name of an evaluator.

It must not know where the answers came from, who asks, or what the verdict will be used for.

    label   a closed set of short answers: equal after normalising, or not
    json    objects and arrays: F1 over the typed leaves
    exact   everything else: the same text
"""

import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

from proxy.errors import BadInput

Evaluator = Callable[[str, str], float]
"""(teacher's answer, candidate's answer) -> verdict in [0, 1]."""

Path = tuple[str | int, ...]
Leaf = tuple[str, object]

QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
SHORT = 80  # characters: longer answers are prose, not labels
MOST_LABELS = 200
ENOUGH = 95  # per cent of answers that must have the form


@dataclass(frozen=True, slots=True)
class JsonAgreement:
    """How a candidate's JSON differs from the teacher's: F1 over leaves, and the number of leaves of each kind."""

    f1: float
    missing: int
    """Paths that only the teacher has."""
    invented: int
    """Paths that only the candidate has."""
    wrong: int
    """Paths that both have, with another type or value."""


def normalise(label: str) -> str:
    """The label without what does not matter: case, width, spacing, surrounding quotes, a closing full stop or `!`."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    text = " ".join(folded.split())
    return text.lstrip(QUOTES + " ").rstrip(QUOTES + " .!") or text


def json_agreement(teacher: str, candidate: str) -> JsonAgreement:
    """Compare two JSON answers leaf by leaf; an answer that is no JSON has no leaves, and the F1 is then 0."""
    wanted, given = _leaves(_parse(teacher)), _leaves(_parse(candidate))
    shared = wanted.keys() & given.keys()
    same = sum(wanted[path] == given[path] for path in shared)
    return JsonAgreement(
        f1=2 * same / max(len(wanted) + len(given), 1),
        missing=len(wanted) - len(shared),
        invented=len(given) - len(shared),
        wrong=len(shared) - same,
    )


def choose_evaluator(answers: Sequence[str]) -> str:
    """The evaluator that fits a task, from the teacher's answers to it; BadInput when there are none."""
    if not answers:
        raise BadInput("no answers to choose an evaluator from: wait for the task's first exchanges")
    enough = ENOUGH * len(answers)
    if 100 * sum(_parse(answer) is not None for answer in answers) >= enough:
        return "json"
    distinct = len({normalise(answer) for answer in answers})
    closed = distinct <= min(MOST_LABELS, max(2, len(answers) // 5))
    if closed and 100 * sum(len(answer) <= SHORT for answer in answers) >= enough:
        return "label"
    return "exact"


def well_formed(evaluator_name: str, answer: str, labels: frozenset[str]) -> bool:
    """Whether a candidate's answer has the form of the task, so that it may reach the client.

    `labels` are the task's known labels, each already through `normalise`; only "label" looks at them.
    """
    match evaluator_name:
        case "json":
            return _parse(answer) is not None
        case "label":
            return normalise(answer) in labels
        case "exact" | "judge":  # What is said is for the judge to score, and that something is said can be seen.
            return bool(answer.strip())
    raise BadInput(f"unknown evaluator {evaluator_name!r}: use one of {', '.join(EVALUATORS)}")


def _label(teacher: str, candidate: str) -> float:
    return float(normalise(teacher) == normalise(candidate))


def _json(teacher: str, candidate: str) -> float:
    return json_agreement(teacher, candidate).f1


def _exact(teacher: str, candidate: str) -> float:
    return float(teacher.strip() == candidate.strip())


EVALUATORS: Mapping[str, Evaluator] = MappingProxyType({"label": _label, "json": _json, "exact": _exact})


def _parse(answer: str) -> dict[str, object] | list[object] | None:
    """The object or array that an answer is, or None; a bare number or word is valid JSON but not an answer in JSON."""
    try:
        value = json.loads(
            answer, object_pairs_hook=_distinct_keys, parse_constant=_no_constant, parse_float=_finite_number
        )
    except (ValueError, RecursionError):  # also integers too long to convert, and absurdly deep nesting
        return None
    return value if isinstance(value, dict | list) else None


def _distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate key")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return value


def _leaves(root: dict[str, object] | list[object] | None) -> dict[Path, Leaf]:
    """Every leaf by its path; an empty container is a leaf. A stack, as answers may nest deeper than calls can."""
    leaves: dict[Path, Leaf] = {}
    stack: list[tuple[Path, object]] = [] if root is None else [((), root)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and value:
            stack.extend(((*path, key), member) for key, member in value.items())
        elif isinstance(value, list) and value:
            stack.extend(((*path, index), member) for index, member in enumerate(value))
        else:
            leaves[path] = _leaf(value)
    return leaves


def _leaf(value: object) -> Leaf:
    """Type and value in comparable form: 1 is 1.0 but not true, and text is compared after NFKC and strip."""
    match value:
        case bool():
            return "boolean", value
        case int() | float():
            return "number", value
        case str():
            return "string", unicodedata.normalize("NFKC", value).strip()
        case dict() | list():
            return f"empty {type(value).__name__}", None
    return "null", None
