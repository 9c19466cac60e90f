"""Owns noticing that a task's instructions were changed while a candidate answers it. Must not act on it.

A student of the old instructions never answers the new ones: they are another task, by their fingerprint, or (where
the client names the task) the decision keeps every request from it that lacks what it learned. Both cost money without
anybody noticing; this says so.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from proxy.log import Log
from proxy.tasks import instructions, skeleton
from router.candidates import CHANGED
from router.registry import CANARY, LIVE, Candidate

NEAR = 0.6  # of the pairs of neighbouring words are shared: one rule more or less, not another job
FEWEST = 10  # exchanges: fewer are somebody trying something out
SHARE = 0.05  # of a named task's exchanges; by definition up to one in a hundred lacks a line that is always there
LOOKED_AT = 100  # new tasks, the largest first

_NEW = """
SELECT task, min(ts), count(*), arg_max(request, id) FROM exchanges
WHERE path = '/v1/chat/completions' AND task IS NOT NULL AND task <> $task AND request_encoding = 'utf-8'
  AND task NOT IN (SELECT task FROM exchanges WHERE ts <= CAST($until AS TIMESTAMPTZ) AND task IS NOT NULL)
  AND task NOT IN (SELECT task FROM candidates)
GROUP BY task HAVING count(*) >= $fewest ORDER BY count(*) DESC, task LIMIT $most
"""
_LACKING = """
SELECT min(ts) FILTER (lacks), count(*) FILTER (lacks), count(*) FROM (
  SELECT ts, coalesce(ends_with(reason, $reason), false) AS lacks FROM exchanges WHERE task = $task AND ts >= $since)
"""


@dataclass(frozen=True, slots=True)
class Change:
    """The instructions of `task`, which `candidate` answers, changed; what came since is called `now`, or the same."""

    task: str
    candidate: str
    now: str
    since: datetime
    exchanges: int

    @property
    def words(self) -> str:
        """What happened and what to do."""
        before = "" if self.now == self.task else f" from those of {self.task}"
        return (
            f"{self.now}: its instructions changed{before} on {self.since:%Y-%m-%d %H:%M}: {self.exchanges} exchanges "
            f"since went to the teacher; `stillroom distill {self.now}`"
        )


def changes(log: Log, known: Iterable[Candidate]) -> list[Change]:
    """What changed away from the candidates that answer something now."""
    found = []
    for candidate in known:
        if candidate.stage in (CANARY, LIVE):
            found += [*_renamed(log, candidate), *_lacking(log, candidate)]
    return found


def near(one: str, other: str) -> float:
    """How alike two skeletons are, in [0, 1]: the share of pairs of neighbouring words they share (Dice 1945)."""
    mine, others = _pairs(one), _pairs(other)
    total = mine.total() + others.total()
    return 2 * (mine & others).total() / total if total else 0.0


def _pairs(text: str) -> Counter[tuple[str, str]]:
    return Counter(itertools.pairwise(text.split()))


def _renamed(log: Log, candidate: Candidate) -> list[Change]:
    """Tasks that came up after the student's data was frozen, with nearly the same instructions."""
    old = log.query(
        "SELECT arg_max(request, id) FROM exchanges WHERE task = ? AND request_encoding = 'utf-8'", [candidate.task]
    )[0][0]
    before = _skeleton(old) if old else ""
    given = {"task": candidate.task, "until": candidate.card["data_until"], "fewest": FEWEST, "most": LOOKED_AT}
    return [
        Change(candidate.task, candidate.id, task, since, count)
        for task, since, count, request in (log.query(_NEW, given) if before else ())
        if near(before, _skeleton(request)) >= NEAR
    ]


def _lacking(log: Log, candidate: Candidate) -> list[Change]:
    """Exchanges of a task that the client names, whose instructions are not those the student learned."""
    given = {"task": candidate.task, "reason": f": {CHANGED}", "since": candidate.since}
    ((since, lacking, everything),) = log.query(_LACKING, given)
    enough = lacking >= FEWEST and lacking >= SHARE * everything
    return [Change(candidate.task, candidate.id, candidate.task, since, lacking)] if enough else []


def _skeleton(request: str) -> str:
    body = json.loads(request)
    return skeleton(instructions(body)) if isinstance(body, dict) else ""
