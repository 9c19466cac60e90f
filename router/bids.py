"""Owns what candidates cost for an exchange, and which of a task's candidates is the cheapest that passes. US dollars.

A candidate's bid is for one exchange of the task under its policy: what the candidate costs for being asked, and the
teacher for the part that it does not cover. Of a hosted model each answer has a price; the engine's hours, idle
included, are shared by all that students were asked. None is unpriced, and never cheaper than a price. Must not move
anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.derive import CHAT
from proxy.log import Log
from router.evidence import Evidence, evidence
from router.registry import HOSTED, RETIRED, SHADOW, Candidate, candidates
from router.slices import lagging

_DOLLARS = "TRY_CAST(usd AS DECIMAL(38, 15))"
# Unpriced as soon as one answer is.
_HOSTED = f"""
SELECT CASE WHEN count({_DOLLARS}) = count(*) THEN CAST(sum({_DOLLARS}) AS DOUBLE) / count(*) END FROM spend
WHERE kind IN ('shadow', 'candidate') AND model = $candidate
"""
_STUDENTS = f"""
SELECT (SELECT CASE WHEN count({_DOLLARS}) = count(*) THEN CAST(sum({_DOLLARS}) AS DOUBLE) END
        FROM spend WHERE kind = 'serving')
  / nullif((SELECT count(*) FROM exchanges WHERE served_by IN (SELECT id FROM candidates WHERE kind <> '{HOSTED}'))
         + (SELECT coalesce(sum(exchanges), 0) FROM carried
            WHERE served_by IN (SELECT id FROM candidates WHERE kind <> '{HOSTED}'))
         + (SELECT count(*) FROM verdicts v JOIN candidates c ON c.id = v.candidate
            WHERE c.kind <> '{HOSTED}' AND v.kind IN ('shadow', 'holdback')), 0)
"""
# As the ledger has it: an unpriced exchange says nothing about the others.
_TEACHER = f"""
SELECT CAST(sum({_DOLLARS}) AS DOUBLE) / count({_DOLLARS}) FROM spend
WHERE kind = 'teacher' AND task = $task AND path = $path
"""


@dataclass(frozen=True, slots=True)
class Bid:
    """A candidate with its evidence and its price: `asked_usd` for asking it once, `usd` for an exchange of the task.

    `passes` is whether its evidence allows a promotion; who answers clients already has passed.
    """

    candidate: Candidate
    found: Evidence
    passes: bool
    asked_usd: float | None
    usd: float | None


def bid(log: Log, candidate: Candidate, floor: float) -> Bid:
    """What the log says of one candidate now; `floor` is `[router] slice_floor`."""
    found = evidence(log, candidate)
    hosted = candidate.kind == HOSTED
    ((asked,),) = log.query(_HOSTED, {"candidate": candidate.id}) if hosted else log.query(_STUDENTS)
    ((teacher,),) = log.query(_TEACHER, {"task": candidate.task, "path": CHAT})
    below = 1 - found.coverage
    usd = None if asked is None or (below and teacher is None) else asked + below * (teacher or 0.0)
    allowed = _passes(log, candidate, found, floor) if candidate.stage == SHADOW else candidate.stage != RETIRED
    return Bid(candidate, found, allowed, asked, usd)


def passes(log: Log, candidate: Candidate, floor: float) -> bool:
    """Whether parity is proved in shadow and no slice is surely behind by `floor`."""
    return _passes(log, candidate, evidence(log, candidate), floor)


def bids(log: Log, task: str, floor: float) -> list[Bid]:
    """Of all of the task's candidates that are not retired, the cheapest first and the unpriced last."""
    return _ranked(log, candidates(log, task), floor)


def cheapest(found: list[Bid]) -> Bid | None:
    """The cheapest that passes, of bids in their order; None where none passes."""
    return next((one for one in found if one.passes), None)


def outbid(log: Log, candidate: Candidate, floor: float) -> str | None:
    """Why a candidate in shadow gives way to another line's that passes, in words, or None.

    Who answers clients already gives way to a cheaper one only; of two in shadow the cheaper one goes on. A newer
    version of the same line is not compared: it is there to take over.
    """
    if candidate.stage != SHADOW:
        return None
    others = _ranked(log, [one for one in candidates(log, candidate.task) if one.line != candidate.line], floor)
    if not others:
        return None
    mine = bid(log, candidate, floor)
    for other in others:
        if not other.passes:
            continue
        stays = _cheaper(other, mine) if other.candidate.stage == SHADOW else not _cheaper(mine, other)
        if stays:
            return f"waits: {other.candidate.id} passes too, for {words(other.usd)}; this one takes {words(mine.usd)}"
    return None


def words(usd: float | None) -> str:
    """What an exchange costs, as people compare it."""
    return "an unknown price" if usd is None else f"${1000 * usd:.4f} for 1,000 exchanges"


def _ranked(log: Log, known: Iterable[Candidate], floor: float) -> list[Bid]:
    found = [bid(log, candidate, floor) for candidate in known if candidate.stage != RETIRED]
    return sorted(found, key=lambda one: (one.usd is None, one.usd or 0.0))


def _passes(log: Log, candidate: Candidate, found: Evidence, floor: float) -> bool:
    return found.parity.proven and not lagging(log, candidate, floor)


def _cheaper(one: Bid, other: Bid) -> bool:
    return one.usd is not None and (other.usd is None or one.usd < other.usd)
