"""Owns which rows the teacher may have answered otherwise: those it was unsure of, or that rows like them contradict.

Must not know what is done about them. A row's margin lies in [-1, 1], the lower the more in doubt; it is the least of

* where log-probabilities were recorded, over the answer's tokens, the probability of the token written less that of the
  likeliest other one reported in its place; where no other is reported, less all that is left (so at least 2 p - 1);
* for labels that out-of-fold probabilities flag (`distiller.noise`), the probability of the label given less that of
  the one suggested, which is below 0.

Only of answers with one right form, labels and JSON: in free text the next word is always in doubt.
"""

import math
from collections.abc import Mapping, Sequence

from distiller.curate import Recorded
from distiller.noise import doubted
from proxy.errors import BadInput
from proxy.logprobs import Position, unpacked

FORMS = ("label", "json")


def doubtful(
    rows: Sequence[Recorded], evaluator: str, aliases: Mapping[str, str], margin: float
) -> list[tuple[Recorded, float]]:
    """The rows whose margin is below `margin`, with it, the most in doubt first; none where answers have no form."""
    if evaluator not in FORMS:
        return []
    flags = doubted(rows, aliases).flags if evaluator == "label" else ()
    flagged = {flag.exchange_id: flag.given_probability - flag.suggested_probability for flag in flags}
    found = [(row, min(recorded_margin(row), flagged.get(row.exchange_id, 1.0))) for row in rows]
    return sorted(((row, one) for row, one in found if one < margin), key=lambda item: (item[1], item[0].exchange_id))


def recorded_margin(row: Recorded) -> float:
    """By the log-probabilities of the row; 1 where there are none that can be read."""
    try:
        positions = unpacked(row.logprobs) if row.logprobs else ()
    except BadInput:
        return 1.0
    return min((_margin(one) for one in positions if one.token), default=1.0)


def _margin(one: Position) -> float:
    own = math.exp(one.logprob)
    others = [math.exp(logprob) for token, logprob in one.top if token != one.token]
    return own - max(others, default=1 - own)
