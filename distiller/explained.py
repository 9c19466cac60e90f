"""Owns what rationales become: a second task beside the answers; and which of them contradict their answer.

Must not know models, nor where a rationale was asked. As a second task (Hsieh et al. 2023, "Distilling Step-by-Step!")
the same request with one line more in its instructions is answered by the rationale: what a student serves gets no
token longer. Where answers are JSON that reasons in a text before it answers, that text is the rationale.
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from typing import Any

from distiller.dataset import Dataset
from router.evaluators import normalise
from router.number_score import TOLERANCE, last_number

PREFIX = "Explain."
LONG = 80  # characters of a usual text that reasons
UNIQUE = 0.9  # share of these texts that stand once
MOST_OF_THEM = 0.95


@dataclass(frozen=True, slots=True)
class Why:
    """The rationales of a task's rows, by exchange, that do not contradict their answer, and how many do.

    `keys` are those of JSON answers they stand under; none where the teacher was asked.
    """

    texts: Mapping[str, str]
    contradicting: int
    keys: tuple[str, ...] = ()


def whys(data: Dataset) -> Why:
    """The rationales of the training rows: those in the answers where these have any, else those that were asked."""
    keys = reasoning_keys([row.answer for row in data.train])
    texts = {row.exchange_id: reasoning(row.answer, keys) for row in data.train} if keys else data.rationales
    answers = {row.exchange_id: without(row.answer, keys) for row in data.train}
    found = {name: text for name, text in texts.items() if text and name in answers}
    aliases = data.declared.aliases
    sound = {name: text for name, text in found.items() if not contradicts(text, answers[name], data.labels, aliases)}
    return Why(sound, len(found) - len(sound), keys)


def prefixed(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The same prompt, with one line more in its instructions: what is asked for is the rationale."""
    first, *others = messages
    lines = [PREFIX, *filter(None, [first["content"]])]
    return [{**first, "content": "\n".join(lines)}, *(dict(other) for other in others)]


def reasoning_keys(answers: Sequence[str]) -> tuple[str, ...]:
    """Keys of JSON answers under which texts stand that are long, nearly unique, and before all other keys.

    Whether such a text reasons, or is itself what was asked for, cannot be seen: a summary looks the same.
    """
    objects = [found for answer in answers if (found := _object(answer)) is not None]
    if not objects or len(objects) < MOST_OF_THEM * len(answers):
        return ()
    texts = {key for key in {key for each in objects for key in each} if _texts(objects, key)}
    leading = [tuple(takewhile(texts.__contains__, each)) for each in objects]
    keys = max(sorted(set(leading)), key=leading.count)
    common = leading.count(keys) >= MOST_OF_THEM * len(objects) and any(len(each) > len(keys) for each in objects)
    return keys if common else ()


def reasoning(answer: str, keys: Sequence[str]) -> str:
    """What stands under these keys of an answer, line by line; nothing where it is no JSON object."""
    found = _object(answer) or {}
    return "\n".join(str(found[key]) for key in keys if found.get(key))


def emptied(answer: str, keys: Collection[str]) -> str:
    """The answer with nothing under these keys, which stay: it keeps its form, but is not what the teacher wrote."""
    found = _object(answer)
    if found is None:
        return answer
    return json.dumps({key: "" if key in keys else value for key, value in found.items()}, ensure_ascii=False)


def without(answer: str, keys: Collection[str]) -> str:
    """The answer without these keys, to be compared by the others only; anything but a JSON object as it is."""
    found = _object(answer)
    if found is None or not keys:
        return answer
    return json.dumps({key: value for key, value in found.items() if key not in keys}, ensure_ascii=False)


def contradicts(rationale: str, answer: str, labels: Collection[str], aliases: Mapping[str, str]) -> bool:
    """Whether a rationale comes to something else than its answer; `labels` are normalised, none: no closed set.

    For labels: it names one other label and not the given one. Else, where the answer is one number - in JSON, where
    one value is - its last number is another. What comes to nothing that can be read contradicts nothing.
    """
    if labels:
        meant = {normalise(alias): normalise(label) for alias, label in aliases.items()}
        given = meant.get(normalise(answer), normalise(answer))
        named = {meant.get(label, label) for label in _named(rationale, labels)}
        return given not in named and len(named) == 1
    wanted, told = _one_number(answer), last_number(rationale)
    if wanted is None or told is None:
        return False
    # "20 %" and 20 are the same here: answers in a field of their own mostly leave the sign out.
    return not any(math.isclose(wanted, value, rel_tol=TOLERANCE) for value in (told.value, 100 * told.value))


def _texts(objects: Sequence[Mapping[str, Any]], key: str) -> bool:
    values = [each[key] for each in objects if isinstance(each.get(key), str)]
    if len(values) < MOST_OF_THEM * len(objects):
        return False
    return median(map(len, values)) >= LONG and len(set(values)) >= UNIQUE * len(values)


def _named(text: str, labels: Collection[str]) -> set[str]:
    """The labels that stand in a text as words; of two that begin together, the longer."""
    plain = {_spaced(label): label for label in sorted(labels)}
    longest = sorted(filter(None, plain), key=len, reverse=True)
    found = re.finditer(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", _spaced(normalise(text)))
    return {plain[one[0]] for one in found}


def _spaced(text: str) -> str:
    return " ".join(re.sub(r"[_/-]", " ", text).split())


def _one_number(answer: str) -> float | None:
    found = _object(answer)
    if found is None:
        number = last_number(answer)
        return number.value if number else None
    numbers = [number.value for value in found.values() if (number := _short_number(value)) is not None]
    return numbers[0] if len(numbers) == 1 else None


def _short_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) >= LONG:
        return None
    return last_number(str(value))


def _object(answer: str) -> dict[str, Any] | None:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
