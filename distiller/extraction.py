"""Owns reading a task's answers as a fixed form: classes chosen from few values, and spans copied from the request.

An answer is taken apart into targets, and put together again, letter for letter as the teacher writes it: its keys,
their order, its spelling of lists, gaps and spaces are learned from the answers. A label is the smallest such form: one
class and no span. Must not know models or tokens; a task whose answers do not fit is refused with counted reasons.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distiller.copying import place
from distiller.fields import Closed, Copied, classes, copied_fields, json_text, put_together, taken_apart
from distiller.writing import ABSENT, Container, Spelling, Where, assemble, learn_containers, learn_spelling
from proxy.errors import BadInput, Refused
from router.evaluators import normalise
from router.json_score import parse

ENOUGH = 0.9  # of all answers that must be made again, and of all that must be JSON to be read so
MOST_LEAVES = 200


@dataclass(frozen=True, slots=True)
class Form:
    """All that is common to a task's answers. `plain`: an answer is one leaf, written as it is and not as JSON."""

    plain: bool
    spelling: Spelling
    closed: tuple[Closed, ...]
    copied: tuple[Copied, ...]
    containers: tuple[Container, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (exclusive) of the text are a value of `Form.copied[field]`."""

    start: int
    end: int
    field: int


@dataclass(frozen=True, slots=True)
class Targets:
    """What varies in one answer: the class of each `Form.closed`, and the spans by their place, none overlapping."""

    classes: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Learned:
    """The form, each row's targets in order, and why others have none: counted by reason."""

    form: Form
    targets: tuple[Targets | None, ...]
    dropped: Mapping[str, int]

    @property
    def round_trip(self) -> float:
        """The share of the answers that are made again from their targets."""
        return sum(one is not None for one in self.targets) / len(self.targets)


@dataclass(frozen=True, slots=True)
class _Row:
    text: str
    answer: str
    value: Any
    leaves: Mapping[Where, Any]


_Meanings = Mapping[Where, Mapping[str, str]]
"""For each closed leaf: the JSON text that stands for a value's."""


def shown(messages: Sequence[Mapping[str, str]]) -> str:
    """The one text that is read of a prompt, as `router.prompt.student_messages` gives it: its parts, line by line."""
    return "\n".join(message["content"] for message in messages if message["content"].strip())


def learn(rows: Sequence[tuple[str, str]]) -> Learned:
    """The form of the answers in `rows` of (text, answer), and their targets.

    Refused where fewer than 90 % of the answers are made again exactly from their targets; a plain label may be spelled
    another way (`router.evaluators.normalise`).
    """
    if not rows:
        raise BadInput("there are no rows to learn a form from")
    values: list[Any] = [parse(answer) for _, answer in rows]
    plain = sum(value is not None for value in values) < ENOUGH * len(rows)
    if plain:
        values = [answer.strip() for _, answer in rows]
    nests = _containers(values)
    read = [_read(text, answer.strip(), value, nests) for (text, answer), value in zip(rows, values, strict=True)]
    form, meanings = _fields([row for row in read if isinstance(row, _Row)], plain)
    taken = [_taken(form, meanings, row) if isinstance(row, _Row) else row for row in read]
    return _checked(_completed(form, read, taken, nests), read, taken)


def write(form: Form, text: str, found: Targets) -> str:
    """The answer that these targets mean: what `learn` took apart, put together again."""
    leaves = _leaves(form, text, found)
    if form.plain:
        return str(leaves[()][0])
    return form.spelling.write(assemble(form.containers, leaves))


def form_from(stored: Mapping[str, Any]) -> Form:
    """The form that `dataclasses.asdict` made a mapping of, also after a way through JSON."""
    containers = ({**one, "where": tuple(one["where"]), "keys": tuple(one["keys"])} for one in stored["containers"])
    return Form(
        stored["plain"],
        Spelling(**stored["spelling"]),
        tuple(Closed(tuple(one["where"]), tuple(one["values"])) for one in stored["closed"]),
        tuple(Copied(**{**one, "where": tuple(one["where"])}) for one in stored["copied"]),
        tuple(Container(**one) for one in containers),
    )


def _containers(values: Sequence[Any]) -> frozenset[Where]:
    """Where answers mostly have an object with keys of its own."""
    nested: Counter[Where] = Counter()
    for value in values:
        for where, inner in _walk(value):
            nested[where] += 1 if isinstance(inner, dict) else -1
    return frozenset(where for where, votes in nested.items() if votes > 0)


def _walk(value: Any) -> Iterator[tuple[Where, Any]]:
    """Everything in nested objects by its place; a stack, as answers may nest deeper than calls can."""
    stack: list[tuple[Where, Any]] = [((), value)]
    while stack:
        where, inner = stack.pop()
        yield where, inner
        if isinstance(inner, dict):
            stack.extend(((*where, key), member) for key, member in inner.items())


def _read(text: str, answer: str, value: Any, nests: frozenset[Where]) -> _Row | str:
    """The row with its leaves, or why it has none."""
    if value is None:
        return "not_json"
    leaves: dict[Where, Any] = {}
    stack: list[tuple[Where, Any]] = [((), value)]
    while stack:
        where, inner = stack.pop()
        if where not in nests:
            leaves[where] = inner
        elif isinstance(inner, dict):
            stack.extend(((*where, key), member) for key, member in reversed(inner.items()))
        else:
            return "other_form"
    return _Row(text, answer, value, leaves)


def _fields(rows: Sequence[_Row], plain: bool) -> tuple[Form, _Meanings]:
    """The form so far, and what the values of its closed leaves mean."""
    wheres = dict.fromkeys(where for row in rows for where in row.leaves)
    if len(wheres) > MOST_LEAVES:
        raise Refused(f"the answers have over {MOST_LEAVES} different keys, no fixed form: train a language model")
    copied: list[Copied] = []
    closed: list[Closed] = []
    meanings: dict[Where, Mapping[str, str]] = {}
    for where in wheres:
        values = [(row.text, json_text(row.leaves[where]) if where in row.leaves else ABSENT) for row in rows]
        if fields := copied_fields(where, values, plain):
            copied += fields
        elif (known := classes([leaf for _, leaf in values], plain)).keys() - {ABSENT}:
            meanings[where] = known
            closed.append(Closed(where, tuple(dict.fromkeys(known.values()))))
    return Form(plain, Spelling(), tuple(closed), tuple(copied), ()), meanings


def _taken(form: Form, meanings: _Meanings, row: _Row) -> Targets | str:
    """The row's targets, or why it has none."""
    members = {one.where: one.member for one in form.copied}
    if not row.leaves.keys() <= members.keys() | meanings.keys():
        return "rare_value"
    texts = [json_text(row.leaves[one.where]) if one.where in row.leaves else ABSENT for one in form.closed]
    meant = [meanings[one.where].get(text) for one, text in zip(form.closed, texts, strict=True)]
    chosen = [one.values.index(text) for one, text in zip(form.closed, meant, strict=True) if text is not None]
    pieces = [(where, taken_apart(row.leaves[where], member)) for where, member in _present(members, row)]
    fields = {(one.where, one.element): index for index, one in enumerate(form.copied)}
    wanted = [(fields.get((where, element)), piece) for where, found in pieces for element, piece in found or ()]
    if len(chosen) < len(form.closed) or any(field is None for field, _ in wanted):
        return "rare_value"
    if any(found is None for _, found in pieces) or any(piece not in row.text for _, piece in wanted):
        return "not_copied"
    starts = place(row.text, [piece for _, piece in wanted])
    if starts is None:
        return "overlapping"
    placed = zip(starts, wanted, strict=True)
    spans = [Span(start, start + len(piece), field) for start, (field, piece) in placed if field is not None]
    return Targets(tuple(chosen), tuple(sorted(spans, key=lambda span: span.start)))


def _present(members: Mapping[Where, str], row: _Row) -> list[tuple[Where, str]]:
    """The copied leaves of a row in its own order."""
    return [(where, members[where]) for where in row.leaves if where in members]


def _completed(form: Form, read: Sequence[_Row | str], taken: Sequence[Targets | str], nests: frozenset[Where]) -> Form:
    """The form with spelling, order and empty objects as the rows that fit have them."""
    pairs = zip(read, taken, strict=True)
    fit = [(row, found) for row, found in pairs if isinstance(row, _Row) and isinstance(found, Targets)]
    if form.plain:
        return form
    placed = [(row.value, _places(form, found)) for row, found in fit]
    spelling = learn_spelling([row.answer for row, _ in fit])
    return Form(False, spelling, form.closed, form.copied, learn_containers(nests, placed))


def _checked(form: Form, read: Sequence[_Row | str], taken: Sequence[Targets | str]) -> Learned:
    """Only rows that are made again keep their targets."""
    targets: list[Targets | None] = []
    dropped: Counter[str] = Counter()
    for row, found in zip(read, taken, strict=True):
        if isinstance(row, _Row) and isinstance(found, Targets):
            again = write(form, row.text, found)
            same = again == row.answer or (form.plain and normalise(again) == normalise(row.answer))
            found = found if same else "written_otherwise"
        targets.append(found if isinstance(found, Targets) else None)
        dropped.update([found] if isinstance(found, str) else [])
    learned = Learned(form, tuple(targets), dict(dropped))
    if learned.round_trip < ENOUGH:
        why = ", ".join(f"{reason} {times}" for reason, times in dropped.most_common())
        raise Refused(
            f"only {learned.round_trip:.1%} of {len(targets)} answers are classes and copies of the request in a fixed "
            f"form, {ENOUGH:.0%} are needed ({why}): train a language model"
        )
    return learned


def _leaves(form: Form, text: str, found: Targets) -> dict[Where, tuple[Any, int | None]]:
    """Value and place of each leaf that is written."""
    leaves: dict[Where, tuple[Any, int | None]] = {}
    for one, chosen in zip(form.closed, found.classes, strict=True):
        if one.values[chosen] != ABSENT:
            leaves[one.where] = json.loads(one.values[chosen]), None
    places = _places(form, found)
    copies: dict[Where, list[Any]] = {}
    for span in found.spans:
        field = form.copied[span.field]
        copies.setdefault(field.where, []).extend(put_together(field, text[span.start : span.end]))
    for field in form.copied:
        values = copies.get(field.where, [])
        if values:
            leaves[field.where] = values if field.listed or len(values) > 1 else values[0], places[field.where]
        elif field.nothing != ABSENT:
            leaves[field.where] = json.loads(field.nothing), None
    return leaves


def _places(form: Form, found: Targets) -> dict[Where, int]:
    """Where the first value of each copied leaf starts."""
    return {form.copied[span.field].where: span.start for span in reversed(found.spans)}
