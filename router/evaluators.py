"""Owns how one comparison is scored: a request and two answers in, one verdict in [0, 1] out, by the evaluator's name.

It must not know where the answers came from, who asks, or what the verdict will be used for.

    label   a closed set of short answers: equal after normalising and aliases, or not
    json    objects and arrays: F1 over the typed leaves, arrays as lists or as sets
    tools   calls of tools: F1 over the calls, by the tools' schemas; also whether to call at all
    number  the last number: equal up to 1e-6, or not
    code    Python: the same syntax tree, or not
    exact   everything else: the same text
    judge   free text: a model is asked, see `router.judging`
    package.module:function  the operator's own

All but "tools" compare texts: an answer that calls a tool is 0 there. The same well-formed answer twice is 1 by each.
"""

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from proxy.errors import BadInput
from router.code_score import code_agreement, is_program, tree
from router.json_score import json_agreement, parse, unordered
from router.number_score import is_number, last_number, number_agreement
from router.own_evaluator import own_evaluator
from router.said import Said
from router.settings import TaskSettings
from router.tools_score import callable_as_said, tools_agreement

Evaluator = Callable[[Mapping[str, Any], Said, Said], float]
"""(the request's body, what the teacher said, what the candidate said) -> verdict in [0, 1]."""

QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
SHORT = 80  # characters: longer answers are prose, not labels
MOST_LABELS = 200
JUDGE = "judge"
"""Free text: no evaluator can score it, `router.judging` does. It is a name without a function here."""
ENOUGH = 95  # per cent of answers that must have the form


def normalise(label: str) -> str:
    """The label without what does not matter: case, width, spacing, surrounding quotes, a closing full stop or `!`."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    text = " ".join(folded.split())
    return text.lstrip(QUOTES + " ").rstrip(QUOTES + " .!") or text


def evaluator(name: str, aliases: Mapping[str, str] | None = None, sets: Collection[str] = ()) -> Evaluator:
    """The evaluator of that name with what was declared for a task; BadInput for one there is not.

    The operator's own is loaded here, so never call this in a worker. `aliases` are for "label", `sets` for "json".
    """
    if ":" in name:
        return own_evaluator(name)
    if name == "label" and aliases:
        return partial(_label, aliases={normalise(alias): normalise(label) for alias, label in aliases.items()})
    if name == "json" and sets:
        return partial(_json, sets=frozenset(sets))
    if name not in EVALUATORS:
        raise _unknown(name)
    return EVALUATORS[name]


def evaluator_for(task: TaskSettings, answers: Sequence[Said]) -> str:
    """The evaluator's name for a task: the declared one, else what fits the answers; BadInput for what cannot be."""
    name = task.evaluator or choose_evaluator(answers)
    check_declared(task, name)
    return name


def check_declared(task: TaskSettings, name: str) -> None:
    """BadInput where the settings of a task cannot go with this evaluator, so that nothing declared is ignored."""
    if name not in (*EVALUATORS, JUDGE) and ":" not in name:
        raise _unknown(name)
    for key, declared, belongs in (("aliases", task.aliases, "label"), ("sets", task.sets, "json")):
        if declared and name != belongs:
            raise BadInput(f'{key} are for the evaluator "{belongs}", not "{name}": drop them, or declare evaluator')
    known = {normalise(alias) for alias in task.aliases}
    chained = [label for label in task.aliases.values() if normalise(label) in known]
    if chained:
        raise BadInput(f"alias of an alias: {chained[0]!r} is said to mean another label; name that one directly")


def choose_evaluator(answers: Sequence[Said]) -> str:
    """The evaluator that fits a task, from the teacher's answers to it; BadInput when there are none.

    "tools" needs calls in more answers than may lack the form: where they are rare, the texts are what matters, and a
    call is 0 like any other answer without the form.
    """
    if not answers:
        raise BadInput("no answers to choose an evaluator from: wait for the task's first exchanges")
    texts = [said.plain for said in answers]
    if not _enough(texts, lambda _: True):
        return "tools"
    if _enough(texts, lambda text: parse(text) is not None):
        return "json"
    distinct = len({normalise(text) for text in texts if text is not None})
    closed = distinct <= min(MOST_LABELS, max(2, len(answers) // 5))
    if closed and _enough(texts, lambda text: len(text) <= SHORT):
        return "label"
    if _enough(texts, is_number):
        return "number"
    return "code" if _enough(texts, is_program) else "exact"


def well_formed(evaluator_name: str, said: Said, labels: frozenset[str]) -> bool:
    """Whether a candidate's answer has the form of the task, so that it may reach the client. Made for workers.

    `labels` are the task's known labels, each already through `normalise`; only "label" looks at them. For the
    operator's own evaluator every answer that is not empty has the form.
    """
    if evaluator_name == "tools":
        return callable_as_said(said)
    text = said.plain
    if text is None:
        return False
    match evaluator_name:
        case "json":
            return parse(text) is not None
        case "label":
            return normalise(text) in labels
        case "number":
            return last_number(text) is not None
        case "code":
            return tree(text) is not None
    if evaluator_name in ("exact", JUDGE) or ":" in evaluator_name:
        return bool(text.strip())
    raise _unknown(evaluator_name)


def known_labels(answers: Collection[str], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """The labels a candidate may answer with, through `normalise`, sorted: the teacher's, and the aliases of them."""
    said = {normalise(answer) for answer in answers}
    meant = {normalise(alias): normalise(label) for alias, label in aliases.items()}
    meanings = {meant.get(label, label) for label in said}
    return tuple(sorted(said | meanings | {alias for alias, label in meant.items() if label in meanings}))


def _enough(texts: Sequence[str | None], formed: Callable[[str], bool]) -> bool:
    return 100 * sum(text is not None and formed(text) for text in texts) >= ENOUGH * len(texts)


def _unknown(name: str) -> BadInput:
    known = ", ".join((*EVALUATORS, JUDGE))
    return BadInput(f"unknown evaluator {name!r}: use one of {known}, or package.module:function")


def _label(
    request: Mapping[str, Any], teacher: Said, candidate: Said, aliases: Mapping[str, str] = MappingProxyType({})
) -> float:
    wanted, given = teacher.plain, candidate.plain
    if wanted is None or given is None:
        return 0.0
    one, other = normalise(wanted), normalise(given)
    return float(aliases.get(one, one) == aliases.get(other, other))


def _json(request: Mapping[str, Any], teacher: Said, candidate: Said, sets: frozenset[str] = frozenset()) -> float:
    return json_agreement(teacher.plain or "", candidate.plain or "", sets | _sets_of(request)).f1


def _number(request: Mapping[str, Any], teacher: Said, candidate: Said) -> float:
    return number_agreement(teacher.plain or "", candidate.plain or "")


def _code(request: Mapping[str, Any], teacher: Said, candidate: Said) -> float:
    return code_agreement(teacher.plain or "", candidate.plain or "")


def _exact(request: Mapping[str, Any], teacher: Said, candidate: Said) -> float:
    wanted, given = teacher.plain, candidate.plain
    return float(wanted is not None and given is not None and wanted.strip() == given.strip())


def _sets_of(request: Mapping[str, Any]) -> frozenset[str]:
    """The arrays that the request's own schema calls `uniqueItems`."""
    form = request.get("response_format")
    described = form.get("json_schema") if isinstance(form, dict) else None
    return unordered(described.get("schema")) if isinstance(described, dict) else frozenset()


EVALUATORS: Mapping[str, Evaluator] = MappingProxyType(
    {"label": _label, "json": _json, "tools": tools_agreement, "number": _number, "code": _code, "exact": _exact}
)
