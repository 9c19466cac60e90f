"""Owns how two JSON answers are compared: leaf by leaf, with type and place, arrays as lists or as sets.

Must not know tasks or settings: it is told which arrays are sets. A path of an array names keys, joined by dots, and
`[]` for "in each element": "items", "orders[].tags"; the empty path is the answer itself. A key with a dot has no path.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy import strict_json
from proxy.errors import BadInput
from router.matching import best_pairs

Leaf = tuple[str, Hashable]
Places = dict[tuple[int, str | int], int]
"""A number for each place, by the place around it and the key in that: paths of any depth at one price."""

SCHEMA_NODES = 1000  # looked at for `uniqueItems`; a schema may refer to itself
PAIRED_LEAVES = 250_000  # looked at to pair the elements of two sets; beyond, only equal elements are a pair
_ROOT = 0


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


@dataclass(frozen=True, slots=True)
class Flat:
    """A JSON value as its leaves by place; sets stand apart, each with its elements, which are flat themselves."""

    leaves: dict[int, Leaf]
    sets: "dict[int, list[Flat]]"
    size: int
    """All leaves, those of the elements included."""
    key: Hashable
    """Equal for values that agree fully."""


def json_agreement(teacher: str, candidate: str, sets: Collection[str] = ()) -> JsonAgreement:
    """Compare two JSON answers leaf by leaf; an answer that is no JSON has no leaves, and the F1 is then 0.

    Elements of a set are paired so that most leaves agree, equal ones first; F1 is the one of van Rijsbergen,
    "Information Retrieval", 1979, over typed leaves. Symmetric, and 1 only for full agreement.
    """
    places: Places = {}
    wanted, given = (flat(parse(answer), sets, places) for answer in (teacher, candidate))
    shared, same = agreement(wanted, given)
    return JsonAgreement(
        f1=2 * same / max(wanted.size + given.size, 1),
        missing=wanted.size - shared,
        invented=given.size - shared,
        wrong=shared - same,
    )


def parse(answer: str) -> dict[str, Any] | list[Any] | None:
    """The object or array that an answer is, or None; a bare number or word is valid JSON but not an answer in JSON."""
    try:
        value = strict_json.read(answer)
    except BadInput:
        return None
    return value if isinstance(value, dict | list) else None


def flat(root: object, sets: Collection[str], places: Places, where: str = "") -> Flat:
    """The leaves of a value; None as `root` has none, an empty container is a leaf. Two are compared by one `places`.

    A stack, as answers may nest deeper than calls can; only a set inside a set is a call deeper, and a path names it.
    """
    leaves: dict[int, Leaf] = {}
    bags: dict[int, list[Flat]] = {}
    stack: list[tuple[int, str | None, object]] = [] if root is None else [(_ROOT, where, root)]
    while stack:
        place, path, value = stack.pop()
        if isinstance(value, dict) and value:
            for key, member in value.items():
                inner = _toward(path, f".{key}" if path else key, sets)
                stack.append((places.setdefault((place, key), len(places) + 1), inner, member))
        elif isinstance(value, list) and value and path in sets:
            bags[place] = [_element(member, sets, places, f"{path}[]") for member in value]
        elif isinstance(value, list) and value:
            inner = _toward(path, "[]", sets)
            for index, member in enumerate(value):
                stack.append((places.setdefault((place, index), len(places) + 1), inner, member))
        else:
            leaves[place] = _leaf(value)
    size = len(leaves) + sum(element.size for bag in bags.values() for element in bag)
    held = frozenset((place, _tally(bag)) for place, bag in bags.items())
    return Flat(leaves, bags, size, (frozenset(leaves.items()), held))


def agreement(wanted: Flat, given: Flat) -> tuple[int, int]:
    """(leaves in places both have, those of them that are equal)."""
    both = wanted.leaves.keys() & given.leaves.keys()
    shared, same = len(both), sum(wanted.leaves[place] == given.leaves[place] for place in both)
    for place in wanted.sets.keys() & given.sets.keys():
        paired, equal = _of_sets(wanted.sets[place], given.sets[place])
        shared, same = shared + paired, same + equal
    return shared, same


def unordered(schema: object, where: str = "") -> frozenset[str]:
    """Paths of the arrays that a JSON schema calls `uniqueItems`, with local references followed."""
    found: set[str] = set()
    stack: list[tuple[str, object]] = [(where, schema)]
    for _ in range(SCHEMA_NODES):
        if not stack:
            break
        path, node = stack.pop()
        node = resolve(node, schema)
        if node.get("uniqueItems") is True:
            found.add(path)
        properties = node.get("properties")
        for key, inner in properties.items() if isinstance(properties, dict) else ():
            stack.append((f"{path}.{key}" if path else key, inner))
        if "items" in node:
            stack.append((f"{path}[]", node["items"]))
        for word in ("anyOf", "oneOf", "allOf"):
            branches = node.get(word)
            stack.extend((path, branch) for branch in (branches if isinstance(branches, list) else ()))
    return frozenset(found)


def resolve(node: object, schema: object) -> Mapping[str, Any]:
    """The schema a node is, or refers to within `schema`; empty where there is none, which allows everything."""
    for _ in range(SCHEMA_NODES):
        if not isinstance(node, dict):
            break
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return node
        node = schema if reference.startswith("#") else None
        for part in reference.split("/")[1:]:
            node = node.get(part) if isinstance(node, dict) else None
    return {}


def _toward(path: str | None, step: str, sets: Collection[str]) -> str | None:
    """The path one step further in; None where no set lies that way, so that paths stay as short as declared ones."""
    inner = None if path is None else path + step
    return inner if inner is not None and any(declared.startswith(inner) for declared in sets) else None


def _element(value: object, sets: Collection[str], places: Places, path: str) -> Flat:
    """An element of a set; null is a value there, not the lack of an answer."""
    if value is None:
        leaf = {_ROOT: _leaf(None)}
        return Flat(leaf, {}, 1, (frozenset(leaf.items()), frozenset()))
    return flat(value, sets, places, path)


def _tally(bag: list[Flat]) -> Hashable:
    return frozenset(Counter(element.key for element in bag).items())


def _of_sets(wanted: list[Flat], given: list[Flat]) -> tuple[int, int]:
    """Pairs equal elements first, which costs no optimum: |A & B| >= |A & C| + |C & B| - |C| for a pair of equal C."""
    left = Counter(element.key for element in given)
    same, alone = 0, []
    for element in wanted:
        if left[element.key]:
            left[element.key] -= 1
            same += element.size
        else:
            alone.append(element)
    others = []
    for element in given:
        if left[element.key]:
            left[element.key] -= 1
            others.append(element)
    if sum(e.size for e in alone) * len(others) + sum(e.size for e in others) * len(alone) > PAIRED_LEAVES:
        return same, same
    found = [[agreement(one, other) for other in others] for one in alone]
    most = 1 + sum(element.size for element in alone)
    pairs = best_pairs([[equal * most + shared for shared, equal in row] for row in found])
    return same + sum(found[i][j][0] for i, j in pairs), same + sum(found[i][j][1] for i, j in pairs)


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
