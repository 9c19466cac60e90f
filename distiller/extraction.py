"""Owns reading a task's answers as a fixed form: classes chosen from few values, and spans copied from the request.

An answer is taken apart into targets, and put together again, letter for letter as the teacher writes it: its keys,
their order, its spelling of lists, gaps and spaces are learned from the answers. A label is the smallest such form: one
class and no span. Must not know models or tokens; a task whose answers do not fit is refused with counted reasons.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distiller.copying import place, stands
from distiller.writing import ABSENT, Container, Spelling, assemble, learn_containers, learn_spelling
from proxy import strict_json
from proxy.errors import BadInput, Refused
from router.evaluators import normalise
from router.json_score import parse

Where = tuple[str, ...]
"""The keys from the root to a leaf; empty for an answer that is one leaf itself."""

ENOUGH = 0.9  # of a field's values that must be copied, and of all answers that must be made again
MOST_VALUES = 200
MOST_FIELDS = 200
NOTHING = (ABSENT, "null", "[]", '""')
"""How a teacher may write that there is nothing to copy."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A leaf chosen from few values: their JSON texts, `ABSENT` for a key that is left out."""

    where: Where
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """A leaf copied from the request's text, once or several times."""

    where: Where
    number: bool
    """Whether it is written as a number."""
    listed: bool
    """Whether a single value is written as a list of one."""
    nothing: str
    """What is written where there is none: one of `NOTHING`."""


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


def shown(messages: Sequence[Mapping[str, str]]) -> str:
    """The one text that is read of a prompt, as `router.prompt.student_messages` gives it: its parts, line by line."""
    return "\n".join(message["content"] for message in messages if message["content"].strip())


def learn(rows: Sequence[tuple[str, str]]) -> Learned:
    """The form of the answers in `rows` of (text, answer), and their targets.

    Refused where fewer than 90 % of the answers are made again exactly from their targets; a label may be spelled
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
    usable = [row for row in read if isinstance(row, _Row)]
    wheres = list(dict.fromkeys(where for row in usable for where in row.leaves))
    if len(wheres) > MOST_FIELDS:
        raise Refused(f"the answers have over {MOST_FIELDS} different keys, no fixed form: train a language model")
    copied = tuple(_copied(where, usable, plain) for where in wheres if _is_copied(where, usable))
    spans = {one.where for one in copied}
    classes = {where: _classes(where, usable, plain) for where in wheres if where not in spans}
    closed = tuple(Closed(w, tuple(dict.fromkeys(known.values()))) for w, known in classes.items() if set(known) - {""})
    bare = Form(plain, Spelling(), closed, copied, ())
    taken = [_taken(bare, classes, row) if isinstance(row, _Row) else row for row in read]
    form = _completed(bare, read, taken, nests)
    return _checked(form, read, taken)


def write(form: Form, text: str, found: Targets) -> str:
    """The answer that these targets mean: what `learn` took apart, put together again."""
    leaves = _leaves(form, text, found)
    if form.plain:
        return str(leaves.get((), ("", None))[0])
    return form.spelling.write(assemble(form.containers, leaves))


def form_from(stored: Mapping[str, Any]) -> Form:
    """The form that `dataclasses.asdict` made a mapping of, also after a way through JSON."""
    return Form(
        stored["plain"],
        Spelling(**stored["spelling"]),
        tuple(Closed(tuple(one["where"]), tuple(one["values"])) for one in stored["closed"]),
        tuple(Copied(**{**one, "where": tuple(one["where"])}) for one in stored["copied"]),
        tuple(
            Container(**{**one, "where": tuple(one["where"]), "keys": tuple(one["keys"])})
            for one in stored["containers"]
        ),
    )


def _containers(values: Sequence[Any]) -> frozenset[Where]:
    """Where answers mostly have an object with keys of its own."""
    nested: Counter[Where] = Counter()
    for value in values:
        for where, inner in _walk(value):
            nested[where] += 1 if isinstance(inner, dict) else -1
    return frozenset(where for where, votes in nested.items() if votes > 0)


def _walk(value: Any, where: Where = ()) -> Iterator[tuple[Where, Any]]:
    yield where, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*where, key))


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


def _strings(value: Any) -> list[str] | None:
    """The texts that would be copied for a value: none for nothing; None for what cannot be a copy."""
    if value is None or value == "":
        return []
    members = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) and not isinstance(one, bool) and one != "" for one in members):
        return None
    return [one if isinstance(one, str) else json.dumps(one) for one in members]


def _is_copied(where: Where, rows: Sequence[_Row]) -> bool:
    filled = [
        (row.text, _strings(row.leaves[where]))
        for row in rows
        if where in row.leaves and _json(row.leaves[where]) not in NOTHING
    ]
    copies = sum(strings is not None and all(stands(text, one) for one in strings) for text, strings in filled)
    return bool(filled) and copies >= ENOUGH * len(filled)


def _copied(where: Where, rows: Sequence[_Row], plain: bool) -> Copied:
    """How the teacher writes the copies at `where`, by majority."""
    texts = [_json(row.leaves[where]) if where in row.leaves else ABSENT for row in rows]
    values = [row.leaves[where] for row in rows if where in row.leaves]
    members = [one for value in values for one in (value if isinstance(value, list) else [value])]
    numbers = sum(isinstance(one, int | float) for one in members)
    single = [isinstance(value, list) for value in values if len(_strings(value) or ()) == 1]
    unseen = '""' if plain else ABSENT if where else "[]"
    return Copied(
        where,
        number=2 * numbers > len(members),
        listed=2 * sum(single) > len(single),
        nothing=_most_common([text for text in texts if text in NOTHING], unseen),
    )


def _classes(where: Where, rows: Sequence[_Row], plain: bool) -> dict[str, str]:
    """Each value's JSON text with the one that stands for it; a value seen once is too rare to be learned.

    Only labels have several spellings: the most common stands for all.
    """
    seen = Counter(_json(row.leaves[where]) if where in row.leaves else ABSENT for row in rows)
    if not plain:
        return {text: text for text, times in seen.most_common(MOST_VALUES) if times > 1}
    total: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    for text, times in seen.most_common():
        total[normalise(json.loads(text))] += times
        spelled.setdefault(normalise(json.loads(text)), text)
    known = {label for label, times in total.most_common(MOST_VALUES) if times > 1}
    return {text: spelled[label] for text in seen if (label := normalise(json.loads(text))) in known}


def _taken(form: Form, classes: Mapping[Where, Mapping[str, str]], row: _Row) -> Targets | str:
    """The row's targets, or why it has none."""
    fields = {one.where: index for index, one in enumerate(form.copied)}
    known = fields.keys() | {one.where for one in form.closed}
    if not row.leaves.keys() <= known:
        return "rare_value"
    chosen = []
    for one in form.closed:
        text = classes[one.where].get(_json(row.leaves[one.where]) if one.where in row.leaves else ABSENT)
        if text is None:
            return "rare_value"
        chosen.append(one.values.index(text))
    values = [(field, _strings(row.leaves[w])) for w in row.leaves if (field := fields.get(w)) is not None]
    wanted = [(field, one) for field, strings in values for one in strings or ()]
    if any(strings is None for _, strings in values) or any(one not in row.text for _, one in wanted):
        return "not_copied"
    starts = place(row.text, [one for _, one in wanted])
    if starts is None:
        return "overlapping"
    spans = [Span(start, start + len(one), field) for start, (field, one) in zip(starts, wanted, strict=True)]
    return Targets(tuple(chosen), tuple(sorted(spans, key=lambda span: span.start)))


def _completed(form: Form, read: Sequence[_Row | str], taken: Sequence[Targets | str], nests: frozenset[Where]) -> Form:
    """The form with spelling, order and empty objects as the rows that fit have them."""
    fit = [
        (row, one) for row, one in zip(read, taken, strict=True) if isinstance(row, _Row) and isinstance(one, Targets)
    ]
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
        reason = row if isinstance(row, str) else found
        if isinstance(row, _Row) and isinstance(found, Targets):
            again = write(form, row.text, found)
            same = again == row.answer or (form.plain and normalise(again) == normalise(row.answer))
            reason = found if same else "written_otherwise"
        targets.append(reason if isinstance(reason, Targets) else None)
        dropped.update([reason] if isinstance(reason, str) else [])
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
    values: defaultdict[int, list[Any]] = defaultdict(list)
    for span in found.spans:
        values[span.field] += _copy(text[span.start : span.end], form.copied[span.field].number)
    for index, field in enumerate(form.copied):
        copies = values[index]
        if copies:
            leaves[field.where] = copies if field.listed or len(copies) > 1 else copies[0], places[field.where]
        elif field.nothing != ABSENT:
            leaves[field.where] = json.loads(field.nothing), None
    return leaves


def _places(form: Form, found: Targets) -> dict[Where, int]:
    """Where the first value of each copied leaf starts."""
    return {form.copied[span.field].where: span.start for span in reversed(found.spans)}


def _copy(piece: str, number: bool) -> list[Any]:
    """The value that a piece of the text is; none where it should be a number and is not."""
    if not number:
        return [piece]
    try:
        value = strict_json.read(piece)
    except BadInput:
        return []
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _most_common(texts: Sequence[str], otherwise: str) -> str:
    return Counter(texts).most_common(1)[0][0] if texts else otherwise


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
