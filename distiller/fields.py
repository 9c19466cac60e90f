"""Owns the fields of an answer's form: leaves chosen from few values, and leaves copied from the request's text.

What a leaf is, and how the teacher writes it, is learned from all values at its place. Must not know whole answers.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distiller.copying import stands
from distiller.writing import ABSENT, Where
from proxy import strict_json
from proxy.errors import BadInput
from router.evaluators import normalise

COPIED_SHARE = 0.9  # of a leaf's values that must stand in the text for it to be a copy
MOST_VALUES = 200
NOTHING = (ABSENT, "null", "[]", '""')
"""How a teacher may write that there is nothing to copy."""

Values = Sequence[tuple[str, str]]
"""(text of the request, JSON text of the leaf) of each row; `ABSENT` where the leaf is not there."""
Piece = tuple[str, str]
"""(`Copied.element`, what is copied)."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A leaf chosen from few values: their JSON texts, `ABSENT` for a key that is left out."""

    where: Where
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """A leaf copied from the request's text, once or several times.

    In a list of objects each copy is the value of one key, `member`, and objects that differ in what else they hold are
    fields of their own: `element` is the JSON text of such an object with null for the copy. Both are empty elsewhere.
    """

    where: Where
    member: str
    element: str
    number: bool
    """Whether it is written as a number."""
    listed: bool
    """Whether a single value is written as a list of one."""
    nothing: str
    """What is written where there is none: one of `NOTHING`."""


def json_text(value: Any) -> str:
    """The one text by which equal values of leaves are known."""
    return json.dumps(value, ensure_ascii=False)


def copied_fields(where: Where, values: Values, plain: bool) -> tuple[Copied, ...]:
    """The fields of a leaf that is copied, none for one that is not. `plain`: the answer is no JSON but a copy."""
    member = _member(values)
    if member is None:
        return ()
    leaves = [json.loads(leaf) for _, leaf in values if leaf != ABSENT]
    pieces = [found for leaf in leaves if (found := taken_apart(leaf, member))]
    elements = Counter(element for found in pieces for element, _ in found)
    single = [isinstance(leaf, list) for leaf in leaves if len(taken_apart(leaf, member) or ()) == 1]
    numbers = [isinstance(one, int | float) for leaf in leaves for one in (leaf if isinstance(leaf, list) else [leaf])]
    empty = [leaf for _, leaf in values if leaf in NOTHING]
    unseen = '""' if plain else ABSENT if where else "[]"
    return tuple(
        Copied(
            where,
            member,
            element,
            number=2 * sum(numbers) > len(numbers),
            listed=2 * sum(single) > len(single) or bool(member),
            nothing=Counter(empty).most_common(1)[0][0] if empty else unseen,
        )
        for element, times in elements.most_common(MOST_VALUES)
        if times > 1 or not member
    )


def taken_apart(leaf: Any, member: str) -> list[Piece] | None:
    """What is copied for a leaf's value, none for nothing; None for a value that cannot be made of copies."""
    if json_text(leaf) in NOTHING:
        return []
    if member:
        objects = leaf if isinstance(leaf, list) else [None]
        pieces = [_of_object(one, member) for one in objects]
    else:
        pieces = [_of_scalar(one) for one in (leaf if isinstance(leaf, list) else [leaf])]
    whole = [piece for piece in pieces if piece is not None]
    return whole if len(whole) == len(pieces) else None


def put_together(field: Copied, piece: str) -> list[Any]:
    """The value that a piece of the text is for this field; none where it should be a number and is not."""
    if field.member:
        return [{**json.loads(field.element), field.member: piece}]
    if not field.number:
        return [piece]
    try:
        value = strict_json.read(piece)
    except BadInput:
        return []
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def classes(leaves: Sequence[str], plain: bool) -> dict[str, str]:
    """Each value's JSON text with the one that stands for it; a value seen once is too rare to be learned.

    Only plain labels have several spellings (`router.evaluators.normalise`): the most common stands for all.
    """
    seen = Counter(leaves)
    if not plain:
        return {text: text for text, times in seen.most_common(MOST_VALUES) if times > 1}
    total: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    for text, times in seen.most_common():
        total[normalise(json.loads(text))] += times
        spelled.setdefault(normalise(json.loads(text)), text)
    known = {label for label, times in total.most_common(MOST_VALUES) if times > 1}
    return {text: spelled[label] for text in seen if (label := normalise(json.loads(text))) in known}


def _member(values: Values) -> str | None:
    """The key of the copies in a list of objects, empty where the copies are the values; None where nothing is copied.

    Of several keys with copies the first, as the others would have to vary little.
    """
    filled = [(text, json.loads(leaf)) for text, leaf in values if leaf not in NOTHING]
    objects = [one for _, leaf in filled if isinstance(leaf, list) for one in leaf if isinstance(one, dict)]
    keys: dict[str, None] = dict.fromkeys(key for one in objects for key in one)
    for member in ("", *keys):
        pieces = [(text, taken_apart(leaf, member)) for text, leaf in filled]
        copies = sum(found is not None and all(stands(text, one) for _, one in found) for text, found in pieces)
        if filled and copies >= COPIED_SHARE * len(filled):
            return member
    return None


def _of_object(one: Any, member: str) -> Piece | None:
    if not isinstance(one, dict) or not isinstance(piece := one.get(member), str) or not piece:
        return None
    return json_text({**one, member: None}), piece


def _of_scalar(one: Any) -> Piece | None:
    if isinstance(one, bool) or not isinstance(one, str | int | float) or one == "":
        return None
    return "", one if isinstance(one, str) else json.dumps(one)
