"""Owns right answers: the comparison of both models with what feedback says the answer should have been, paired.

Must not draw conclusions. Let v say how the candidate's answer agrees with the right one, and y how the teacher's does.
The verdict then counts as 1 + v - y, at most 1: whether the candidate is no worse, not whether it says the same. The
verdict that was reached before stays in the log.

Answers come late, and for exchanges that people chose, mostly those they were not content with. Parity stays valid all
the same. Of an exchange without one, agreement a with the teacher stands for how much more often the candidate is
right: a <= min(1, 1 + v - y) <= 1 + v - y wherever an evaluator says equal or not, since who says the same is as right.
So every verdict is at most what its right answer would make of it, whichever come, and when; and as the bets of
`router.parity` are fixed, the wealth is never above that of somebody who knew 1 + v - y of all exchanges from the
start, which Ville's inequality bounds over all looks. A refutation may so come early, a proof may not. Only approximate
where verdicts are graded (json), which break the first step a little, and where a right answer is corrected later.

A bare score is about the one answer that was served. Those who complain are no fair sample, and nobody scored the other
model's answer, so scores are shown and enter no test: a complaint makes audits, which are drawn by chance, more.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from proxy.log import Log
from proxy.patterns import KINDS
from router.evaluators import EVALUATORS, evaluator
from router.registry import Candidate
from router.said import Said

AT_ONCE = 1000  # verdicts scored anew in one transaction
LATELY = timedelta(days=7)  # how long a complaint makes audits more
MOST_MORE = 5  # times the share of audits that was set: what complaints may cost
LOW = 0.5  # A score below it is a complaint.

# Placeholders are numbered anew in each exchange: an answer that holds one cannot be compared with another exchange's.
_REDACTED = rf"\[({'|'.join(KINDS)})_\d+\]"
# Looked at in every round, so without any text; what is found may still turn out not to be comparable.
_ANY_NEW = """
SELECT 1 FROM verdicts v JOIN feedback f ON f.exchange = v.exchange
WHERE v.candidate = ? AND v.kind <> 'golden' AND f.gold IS NOT NULL AND f.gold IS DISTINCT FROM v.gold LIMIT 1
"""
_DUE = """
SELECT v.id, f.gold, e.request, f.answer, CASE WHEN v.kind = 'audit' THEN v.answer ELSE e.answer END AS teacher,
       CASE WHEN v.kind = 'audit' THEN e.answer ELSE v.answer END AS candidate
FROM verdicts v JOIN feedback f ON f.exchange = v.exchange JOIN exchanges e ON e.id = v.exchange
WHERE v.candidate = $candidate AND v.kind IN ('shadow', 'holdback', 'audit') AND f.gold IS DISTINCT FROM v.gold
  AND v.answer IS NOT NULL AND e.answer IS NOT NULL AND e.tool_calls IS NULL AND f.answer IS NOT NULL
  AND NOT regexp_matches(f.answer, $redacted)
ORDER BY v.id LIMIT $limit
"""
_SCORED = """
UPDATE verdicts SET candidate_right = v, teacher_right = y, gold = fresh.gold
FROM (SELECT unnest(CAST($ids AS VARCHAR[])) AS id, unnest(CAST($candidate AS DOUBLE[])) AS v,
             unnest(CAST($teacher AS DOUBLE[])) AS y, unnest(CAST($golds AS VARCHAR[])) AS gold) AS fresh
WHERE verdicts.id = fresh.id
"""
_IGNORED = """
SELECT count(*) FROM exchanges f
WHERE f.path = '/v1/feedback' AND f.served_by = 'stillroom' AND f.status = 200 AND NOT EXISTS (
  SELECT 1 FROM exchanges e
  WHERE e.id = (f.response ->> '$.exchange') AND e.tenant IS NOT DISTINCT FROM f.tenant AND e.path <> '/v1/feedback')
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What feedback said of a candidate: scores of answers it served; covered shadow verdicts on the right answer.

    How often both were right is shown, and proves nothing, as people chose the exchanges.
    """

    scored: int
    mean_score: float | None
    complaints: int
    gold: int
    gold_share: float
    """Of the covered shadow verdicts."""
    candidate_right: float | None
    teacher_right: float | None


def score_gold(log: Log, candidate: Candidate) -> int:
    """Score the candidate's verdicts anew whose right answer has come since; returns how many, at most AT_ONCE.

    None where the candidate's evaluator is none that compares two texts by itself; BadInput where the operator's fails.
    """
    if (candidate.evaluator not in EVALUATORS and ":" not in candidate.evaluator) or not log.query(
        _ANY_NEW, [candidate.id]
    ):
        return 0
    rows = log.query(_DUE, {"candidate": candidate.id, "redacted": _REDACTED, "limit": AT_ONCE})
    if not rows:
        return 0
    evaluate = evaluator(candidate.evaluator, candidate.card.get("aliases"), candidate.card.get("sets") or ())

    def agreement(request: str, right: str, given: str) -> float:
        return evaluate(json.loads(request), Said(right), Said(given))

    fresh: dict[str, list[Any]] = {
        "ids": [verdict for verdict, *_ in rows],
        "golds": [gold for _, gold, *_ in rows],
        "candidate": [agreement(request, right, given) for _, _, request, right, _, given in rows],
        "teacher": [agreement(request, right, teacher) for _, _, request, right, teacher, _ in rows],
    }

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(_SCORED, fresh)

    log.transaction(work)
    return len(rows)


def told(log: Log, candidate: Candidate) -> Told:
    """What there is of feedback about a candidate, as `stillroom status` shows it."""
    ((scored, mean, complaints),) = log.query(
        "SELECT count(score), avg(score), count(*) FILTER (score < ?) FROM feedback WHERE served_by = ?",
        [LOW, candidate.id],
    )
    ((gold, covered, right, teacher_right),) = log.query(
        "SELECT count(gold), count(*), avg(candidate_right), avg(teacher_right) FROM verdicts "
        "WHERE candidate = ? AND kind = 'shadow' AND covered",
        [candidate.id],
    )
    return Told(scored, mean, complaints, gold, gold / covered if covered else 0.0, right, teacher_right)


def audit_share(log: Log, candidate: Candidate, share: float) -> float:
    """The share of exchanges to audit: `share`, once more for each complaint of late, up to MOST_MORE times it."""
    ((complaints,),) = log.query(
        "SELECT count(*) FROM feedback WHERE served_by = ? AND score < ? AND ts >= ?",
        [candidate.id, LOW, datetime.now(UTC) - LATELY],
    )
    return float(min(1.0, share * min(1 + complaints, MOST_MORE)))


def ignored(log: Log) -> int:
    """Feedback that names an exchange of another tenant, or one that is not, or no longer, in the log."""
    return int(log.query(_IGNORED)[0][0])
