"""Owns golden sets: a candidate asked again what it was certified on, once nobody can be asked for a right answer.

The golden set of a candidate is at most SIZE of its covered shadow exchanges that have a verdict, the first by a hash
of their ids: fixed, and chosen without regard to any verdict, for as long as the log keeps them. The recorded answers
are the truth. In place of every answer that would have been audited one golden exchange is asked again, the one longest
not asked, so that golden verdicts come as often as audits did. Must not draw conclusions, nor ask a teacher.

What a verdict counts as is `CHANGE`: 1 + now - then, at most 1, where `then` is the verdict of the same exchange in
shadow. So a candidate that answers as it did scores 1 whatever its golden mean is: SIZE exchanges of a task certified
at 0.96 have a mean below 0.95 in 18 of 100 cases, and asked for ever they would be an alarm for certain. The same
words as then count as then, without a judge, who might waver.

What this can see: a change of the candidate (weights, engine, quantisation, adapter), as a fall of its agreement on
these exchanges by more than the margin. What it cannot: a change of the traffic, as these requests stay as they were.
Asking again is no new draw: after one pass nothing is learned of requests outside of the set. Where the candidate's
own answers vary, those that were right and now are not count, and the opposite does not: this errs to the alarm.
"""

import asyncio
import json
from collections.abc import Collection
from dataclasses import dataclass, replace

import aiohttp

from proxy.log import Log
from router.judge import Judge
from router.policy import Route
from router.registry import Candidate
from router.said import Said
from router.scoring import scoring
from router.shadow import answered, kept, scored, unavailable, worth_scoring
from router.verdicts import Costs, Verdict

SIZE = 200
CHANGE = """
SELECT g.id, least(1.0, 1.0 + g.verdict - s.verdict) AS score
FROM verdicts g JOIN verdicts s ON s.candidate = g.candidate AND s.exchange = g.exchange AND s.kind = 'shadow'
WHERE g.candidate = $candidate AND g.kind = 'golden' AND g.covered
"""
"""Golden verdicts as they enter the statistic, in SQL."""

_SET = f"""
SELECT e.id, e.request, e.answer AS truth, s.answer AS before, s.verdict
FROM verdicts s JOIN exchanges e ON e.id = s.exchange
WHERE s.candidate = $candidate AND s.kind = 'shadow' AND s.covered AND s.verdict IS NOT NULL AND e.answer IS NOT NULL
ORDER BY hash('golden' || e.id), e.id LIMIT {SIZE}
"""
_NEXT = f"""
SELECT g.* FROM ({_SET}) g LEFT JOIN (
  SELECT exchange, max(id) AS last FROM verdicts WHERE candidate = $candidate AND kind = 'golden' GROUP BY exchange
) l ON l.exchange = g.id
ORDER BY l.last NULLS FIRST, hash('golden' || g.id), g.id LIMIT $limit
"""
# Of one day, as the share may have been another before, and the log may keep no more.
_DUE = """
SELECT (SELECT count(*) FROM exchanges e
        WHERE path = '/v1/chat/completions' AND served_by = $candidate AND status = 200
          AND list_contains(CAST($ended AS VARCHAR[]), model) AND teacher IS NULL AND ts > now() - INTERVAL 1 DAY
          AND hash(id) / 18446744073709551615 < $share
          AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.exchange = e.id))
     - (SELECT count(*) FROM verdicts
        WHERE candidate = $candidate AND kind = 'golden' AND ts > now() - INTERVAL 1 DAY)
"""
_STANDING = f"""
SELECT (SELECT count(*) FROM ({_SET})), count(*), avg(score) FROM ({CHANGE})
"""


@dataclass(frozen=True, slots=True)
class Golden:
    """A candidate's golden set: exchanges in it, covered verdicts since, and their mean, 1 meaning as it was."""

    exchanges: int
    verdicts: int
    mean: float | None


async def golden(
    log: Log,
    session: aiohttp.ClientSession,
    candidate: Candidate,
    route: Route,
    ended: Collection[str],
    share: float,
    limit: int,
    concurrency: int,
    judge: Judge | None = None,
) -> int:
    """Ask the candidate again on up to `limit` golden exchanges, where audits of `share` would be due; how many it did.

    Of kind "golden"; a candidate that fails, or would leave the request to the teacher, is uncovered, as in shadow.
    BadInput as `router.shadow.shadow`.
    """
    rows = _due(log, candidate, ended, share, limit)
    score = scoring(candidate, judge) if rows else None
    if score is None:
        return 0
    gate, costs = asyncio.Semaphore(concurrency), Costs()
    patient = replace(route, timeout=max(route.timeout, 120.0))

    async def one(exchange: str, request: str, truth: str, before: str | None, then: float) -> Verdict | None:
        body = json.loads(request)
        async with gate:
            fresh = Verdict(exchange, "golden", 0.0, None, False, None, 0.0, None)
            asked = await answered(session, patient, fresh, body, costs)
        if unavailable(asked):
            return None
        if asked.answer is not None and asked.answer == before:
            return replace(asked, verdict=then)
        if not worth_scoring(candidate, asked):
            return asked
        return await scored(score, asked, body, Said(truth), costs)

    outcomes = await asyncio.gather(*(one(*row) for row in rows), return_exceptions=True)
    return kept(log, candidate, outcomes, costs, judge)


def standing(log: Log, candidate: Candidate) -> Golden:
    """The candidate's golden set as `stillroom status` shows it."""
    ((exchanges, verdicts, mean),) = log.query(_STANDING, {"candidate": candidate.id})
    return Golden(exchanges, verdicts, mean)


def _due(
    log: Log, candidate: Candidate, ended: Collection[str], share: float, limit: int
) -> list[tuple[str, str, str, str | None, float]]:
    """Exchange, request, right answer, and what the candidate said in shadow with its verdict, of those to ask now."""
    among = {"candidate": candidate.id, "ended": list(ended), "share": share}
    ((due,),) = log.query(_DUE, among)
    return log.query(_NEXT, {"candidate": candidate.id, "limit": min(limit, due)}) if due > 0 else []
