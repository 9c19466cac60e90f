"""Owns what follows from a forecast's figures, in words. Must not compute a figure, nor read the log.

A stand-in that fails says that words alone do not tell the answers apart, which a student may still do: a conclusion
keeps that apart from what is certain.
"""

from dataclasses import dataclass
from math import ceil

from distiller.stand_in import REPEATED, Outlook

DISTILLABLE = "distillable"
MORE = "needs more exchanges"
NOT = "not distillable"
UNKNOWN = "not known before training"


@dataclass(frozen=True, slots=True)
class Facts:
    """Of `read` exchanges `fit` are fit to learn from and `calls` call tools; `needed` is the least to learn from.

    `too_long` is the share that `[distiller] max_tokens` would leave out, None where that is unknown; `why_none` is why
    there is no `outlook`.
    """

    read: int
    fit: int
    calls: int
    needed: int
    too_long: float | None
    evaluator: str
    margin: float
    outlook: Outlook | None
    why_none: str


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`word` is one of the four above, `why` its reason; `more` exchanges to record, None where not known."""

    word: str
    why: str
    more: int | None = None


def conclude(facts: Facts) -> Conclusion:
    """The first that holds, in the order written here."""
    if facts.evaluator == "tools" or 2 * facts.calls > facts.read:
        return Conclusion(NOT, f"{facts.calls} of {facts.read} answers call tools, and students answer in text")
    if facts.too_long is not None and facts.too_long > 0.5:
        why = f"{facts.too_long:.0%} of the rows are longer than distiller.max_tokens and would be left out: raise it"
        return Conclusion(NOT, why)
    if facts.fit < facts.needed:
        return _too_few(facts)
    if facts.outlook is None:
        return Conclusion(UNKNOWN, facts.why_none)
    return _by_outlook(facts, facts.outlook)


def _too_few(facts: Facts) -> Conclusion:
    missing = facts.needed - facts.fit
    if not facts.fit:
        return Conclusion(MORE, f"none of {facts.read} exchanges is fit to learn from: see why they were dropped")
    more = ceil(missing * facts.read / facts.fit)
    return Conclusion(
        MORE, f"{facts.fit} of {facts.read} exchanges are fit to learn from and {facts.needed} are needed "
        f"(distiller.min_exchanges): record about {more:,} more", more
    )  # fmt: skip


def _by_outlook(facts: Facts, outlook: Outlook) -> Conclusion:
    bar = f"an agreement of at least {1 - facts.margin:.2f}"
    if outlook.threshold is not None:
        return Conclusion(
            DISTILLABLE, f"even a stand-in that only knows words can be proposed for {outlook.threshold.coverage:.0%} "
            f"of the exchanges with {bar} on them"
        )  # fmt: skip
    if outlook.times is not None:
        more = (outlook.times - 1) * facts.read
        return Conclusion(
            MORE, f"the surest {outlook.coverage.value:.0%} of the latest rows have {bar}, but they are too few to "
            f"show it: about {more:,} more exchanges like these would", more
        )  # fmt: skip
    if outlook.curve.more:
        more = ceil(outlook.curve.more * facts.read / outlook.curve.points[-1][0])
        return Conclusion(MORE, f"{outlook.curve.words}; that is about {more:,} more exchanges", more)
    return Conclusion(
        NOT, f"as far as a stand-in can tell: it agrees on {outlook.agreement.value:.0%}, the most common answer on "
        f"{outlook.majority:.0%}, nowhere surely with {bar}, nor would {REPEATED[-1]} times as many rows show it; "
        f"{outlook.curve.words}. Words may not be what decides here: a student can do better, and `stillroom distill` "
        "tells"
    )  # fmt: skip
