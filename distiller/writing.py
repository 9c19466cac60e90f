"""Owns how a teacher writes JSON: spaces, escapes, the order of keys, and what becomes of objects without content.

Must not know where values come from: it is given leaves, each with its place in the request's text where it has one.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from router.json_score import parse

ABSENT = ""
"""No JSON text: the key is not there."""

Where = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spelling:
    """The arguments of `json.dumps` that make the teacher's text."""

    indent: int | None = None
    comma: str = ", "
    colon: str = ": "
    escaped: bool = False

    def write(self, value: Any) -> str:
        """The JSON text of a value."""
        separators = (self.comma, self.colon)
        return json.dumps(value, indent=self.indent, separators=separators, ensure_ascii=self.escaped)


@dataclass(frozen=True, slots=True)
class Container:
    """An object of the answers: its keys in the teacher's usual order."""

    where: Where
    keys: tuple[str, ...]
    by_text: bool
    """Whether keys go by their places in the text: those without one first, in the usual order."""
    kept: bool
    """Whether it is written when it is empty."""


def learn_spelling(answers: Sequence[str]) -> Spelling:
    """The spelling that most of these JSON texts have."""
    shapes = [(None, ", ", ": "), (None, ",", ":"), *((indent, ",", ": ") for indent in (2, 4, 1, 3))]
    choices = [Spelling(*shape, escaped) for shape in shapes for escaped in (False, True)]
    values = [parse(answer) for answer in answers]
    return max(choices, key=lambda one: sum(one.write(v) == a for v, a in zip(values, answers, strict=True)))


def learn_containers(
    wheres: Collection[Where], rows: Sequence[tuple[Any, Mapping[Where, int]]]
) -> tuple[Container, ...]:
    """The objects at `wheres`, from rows of (whole answer, where its copied leaves stand in the text)."""
    return tuple(_container(where, rows) for where in sorted(wheres))


def assemble(containers: Sequence[Container], leaves: Mapping[Where, tuple[Any, int | None]]) -> Any:
    """The whole answer, from each leaf's value and place (None: it has none)."""
    if () in leaves:
        return leaves[()][0]
    by_where = {one.where: one for one in containers}
    built = dict(leaves)
    for where in sorted(by_where, key=len, reverse=True):  # what is inside comes first
        container = by_where[where]
        members = {key: built[*where, key] for key in container.keys if (*where, key) in built}
        if members or container.kept:
            places = {key: place for key, (_, place) in members.items() if place is not None}
            keys = _ordered(container.keys, members, places if container.by_text else {})
            built[where] = {key: members[key][0] for key in keys}, min(places.values(), default=None)
    return built[()][0]


def _container(where: Where, rows: Sequence[tuple[Any, Mapping[Where, int]]]) -> Container:
    objects = [
        (inner, _inside(where, places)) for value, places in rows if isinstance(inner := _at(value, where), dict)
    ]
    keys = _usual_order([list(value) for value, _ in objects])
    fixed = sum(list(value) == _ordered(keys, value, {}) for value, _ in objects)
    by_text = sum(list(value) == _ordered(keys, value, places) for value, places in objects)
    empty = sum(not value for value, _ in objects)
    missing = sum(isinstance(_at(value, where[:-1]), dict) for value, _ in rows) - len(objects)
    return Container(where, keys, by_text > fixed, kept=not where or empty >= missing)


def _at(value: Any, where: Where) -> Any:
    for key in where:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _inside(where: Where, places: Mapping[Where, int]) -> dict[str, int]:
    """The first place under each key of the object at `where`."""
    first: dict[str, int] = {}
    depth = len(where)
    for leaf, place in places.items():
        if len(leaf) > depth and leaf[:depth] == where:
            first[leaf[depth]] = min(place, first.get(leaf[depth], place))
    return first


def _ordered(keys: Sequence[str], present: Collection[str], places: Mapping[str, int]) -> list[str]:
    """The keys that are present in their usual order; those with a place after the others, by it."""
    return sorted((key for key in keys if key in present), key=lambda key: places.get(key, -1))


def _usual_order(orders: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All keys, so that each stands after those that mostly precede it: exact where the order is always the same."""
    pairs = Counter(pair for order in orders for pair in combinations(order, 2))
    left = dict.fromkeys(key for order in orders for key in order)
    usual = []
    while left:
        first = min(left, key=lambda key: sum(pairs[other, key] > pairs[key, other] for other in left))
        usual.append(first)
        del left[first]
    return tuple(usual)
