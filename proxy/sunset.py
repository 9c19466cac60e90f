"""Owns the end of a teacher's model as the request path sees it: from its day on, its successor is asked in its place.

Must not know how a decision is reached, nor what the log says: a worker knows the date that was set, and nothing else.
One member of the body changes, by a splice; every other byte stays.
"""

import codecs
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from proxy.errors import BadInput
from proxy.settings import SunsetSettings
from proxy.splice import spliced, whole_object

SUCCESSOR = "successor "
"""How the reason of an exchange begins that a successor answered: others tell it apart."""
GONE = 410
"""What a 404 counts as that speaks of the model, not of the address."""
NO_MODEL = "model_not_found"


class Succeeded(NamedTuple):
    """The body as the successor gets it, and which of the two was asked for."""

    body: bytes
    reason: str


class Succession:
    """Who is asked in whose place, by the day."""

    def __init__(self, sunsets: Sequence[SunsetSettings] = ()) -> None:
        """Only those with both a day and a successor matter here."""
        self._days = {
            one.model: (datetime(*one.shutdown.timetuple()[:3], tzinfo=UTC).timestamp(), one.successor)
            for one in sunsets
            if one.shutdown is not None and one.successor
        }
        self._first = min((day for day, _ in self._days.values()), default=float("inf"))

    def __call__(self, body: bytes, now: float) -> Succeeded | None:
        """The request as it goes to the successor at `now`, in seconds of the epoch; None where it goes as it came.

        What cannot be read is the teacher's to refuse. Of a key given twice the last counts, as for JSON parsers.
        """
        if now < self._first or b'"model"' not in body:
            return None
        try:
            body.decode()  # Only to refuse what is not UTF-8.
            text = body.decode("latin-1")  # One character a byte: positions are those of the body.
            members, _ = whole_object(text, len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0)
        except (ValueError, RecursionError):
            return None
        asked = {member.key: member for member in members}.get("model")
        if asked is None or not isinstance(asked.value, str):
            return None
        day, successor = self._days.get(asked.value, (float("inf"), ""))
        if now < day:
            return None
        reason = f"{SUCCESSOR}{successor} for {asked.value}"
        return Succeeded(spliced(body, asked.at, asked.end, json.dumps(successor).encode()), reason)


def is_gone(status: int, body: bytes) -> bool:
    """Whether the teacher says that it has no such model, as OpenAI and those who speak like it do."""
    return status == 404 and NO_MODEL.encode() in body


def check_sunsets(sunsets: Sequence[SunsetSettings]) -> None:
    """BadInput where a sunset names no model, or one that another names too, or a successor that ends itself."""
    models = [one.model for one in sunsets]
    for place, one in enumerate(sunsets):
        where = f"teacher.sunsets[{place}]"
        if not one.model:
            raise BadInput(f"{where} needs the model that ends, as clients name it")
        if models.count(one.model) > 1:
            raise BadInput(f"{where}.model {one.model!r} is there twice: keep one of them")
        if one.successor in models:
            raise BadInput(f"{where}.successor {one.successor!r} ends too: name a model that stays")
