"""Owns the end of a teacher's model as the request path sees it: from its day on, its successor is asked in its place.

So it is, for a while, after the teacher said that it has no such model. Must not know how a decision is reached, nor
what the log says: a worker knows the day that was set, and what it was told itself.
One member of the body changes, by a splice; every other byte stays.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

from proxy.errors import BadInput
from proxy.renaming import renamed
from proxy.settings import SunsetSettings

SUCCESSOR = "successor "
"""How the reason of an exchange begins that a successor answered: others tell it apart."""
GONE = 410
"""What a 404 counts as that speaks of the model, not of the address."""
NO_MODEL = "model_not_found"
MISSING = " for missing "
"""What stands between both names where the teacher was asked first, and had no such model."""
MISSED_SECONDS = 60.0


class Succeeded(NamedTuple):
    """The body as the successor gets it, its name, and the model that was asked for."""

    body: bytes
    successor: str
    model: str


class Succession:
    """Who is asked in whose place, and since when. A model that was missed counts as ended for MISSED_SECONDS."""

    def __init__(self, sunsets: Sequence[SunsetSettings] = ()) -> None:
        """Only those with a successor matter here."""
        self._successors = {one.model: one.successor for one in sunsets if one.successor}
        self._from = {one.model: _start(one.shutdown) for one in sunsets}
        self._missed: dict[str, float] = {}
        self._first = min((self._from[model] for model in self._successors), default=float("inf"))

    def __call__(self, body: bytes, now: float) -> Succeeded | None:
        """The request as it goes to the successor at `now`, in seconds of the epoch; None where it goes as it came.

        What cannot be read is the teacher's to refuse. Of a key given twice the last counts, as for JSON parsers.
        """
        if now < self._first and not self._missed:
            return None
        found = self.instead(body)
        if found is None or now >= self._from[found.model] or now < self._missed.get(found.model, 0.0):
            return found
        self._missed.pop(found.model, None)
        return None

    def instead(self, body: bytes) -> Succeeded | None:
        """The request as it would go to the successor, whatever the day; None where there is none."""
        if not self._successors or b'"model"' not in body:
            return None
        found = renamed(body, self._successors.get)
        return None if found is None else Succeeded(*found)

    def missed(self, model: str, now: float) -> None:
        """The teacher has just said that it has no such model: its successor is asked at once for a while."""
        self._missed[model] = now + MISSED_SECONDS


def _start(day: date | None) -> float:
    return float("inf") if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


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
