"""Owns answers as parts that can each be chosen from a closed set: a label as one, a JSON object leaf by leaf.

Must not know how a part is chosen. A part is named by the keys that lead to it; an array is one leaf, whole. A part is
closed when the rows that have it hold few different values, by the rule by which a task's labels are a closed set.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from router.evaluators import MOST_LABELS
from router.json_score import parse

Place = tuple[str, ...]
ABSENT = ""
"""The value of a leaf that an answer has not; no JSON text is empty."""
MOST_PLACES = 60  # closed leaves; answers with more are forms of their own


def closed_leaves(answers: Sequence[str]) -> tuple[dict[Place, list[str]], list[Place]]:
    """The closed leaves of JSON answers, each with its value in every answer as JSON text, and the leaves that are not.

    Answers that are no JSON have no leaf.
    """
    flat = [leaves(answer) for answer in answers]
    values: defaultdict[Place, Counter[str]] = defaultdict(Counter)
    for one in flat:
        for place, value in one.items():
            values[place][value] += 1
    shut = {place for place, seen in values.items() if len(seen) <= min(MOST_LABELS, max(2, seen.total() // 5))}
    if len(shut) > MOST_PLACES:
        shut = set()
    found = {place: [one.get(place, ABSENT) for one in flat] for place in sorted(shut)}
    return found, sorted(values.keys() - shut)


def leaves(answer: str) -> dict[Place, str]:
    """Each leaf of an answer in JSON by its place; empty for an answer that is none."""
    found: dict[Place, str] = {}
    root = parse(answer)
    stack: list[tuple[Place, Any]] = [] if root is None else [((), root)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, dict) and value:
            stack += [((*place, key), member) for key, member in value.items()]
        else:
            found[place] = json.dumps(value, sort_keys=True)
    return found


def joined(parts: Mapping[Place, str]) -> str:
    """The answer that has these leaves: what `leaves` takes apart, in the order of the places.

    Of leaves that cannot stand together, as one lies within the other, the deeper one is left out.
    """
    if () in parts and parts[()] != ABSENT:
        return parts[()]
    root: dict[str, Any] = {}
    for place, value in sorted(parts.items(), key=lambda item: (len(item[0]), item[0])):
        node: Any = root
        for key in place[:-1]:
            node = node.setdefault(key, {}) if isinstance(node, dict) and value != ABSENT else None
        if isinstance(node, dict) and place and value != ABSENT:
            node.setdefault(place[-1], json.loads(value))
    return json.dumps(root)
