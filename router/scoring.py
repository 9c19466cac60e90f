"""Owns how the answers to one exchange are scored for a candidate: by the evaluator it was registered with, or a judge.

Runs where verdicts are reached, never in a worker. Must not know where the answers came from.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from router.evaluators import JUDGE, Evaluator, evaluator
from router.judge import Judge
from router.judging import Bill, Judged, judged
from router.registry import Candidate
from router.said import Said

Score = Callable[[str, Mapping[str, Any], Said, Said], Awaitable[Judged]]
"""(exchange, the request's body, what the teacher said, what the other said) -> the verdict and what it cost."""


def scoring(candidate: Candidate, judge: Judge | None) -> Score | None:
    """As it was declared when the candidate was registered; None where only a judge can score and none is there now.

    BadInput where the operator's evaluator is gone since.
    """
    if candidate.evaluator != JUDGE:
        declared = candidate.card.get("aliases"), candidate.card.get("sets") or ()
        return partial(_evaluated, evaluator(candidate.evaluator, *declared))
    return None if judge is None or judge.resting else partial(_judged, judge)


async def _evaluated(score: Evaluator, exchange: str, body: Mapping[str, Any], teacher: Said, other: Said) -> Judged:
    return Judged(score(body, teacher, other), None, Bill(exchange, 0, 0.0))


async def _judged(judge: Judge, exchange: str, body: Mapping[str, Any], teacher: Said, other: Said) -> Judged:
    """Only texts can be put before a judge; where a side said none, the answers do not agree."""
    wanted, given = teacher.plain or "", other.plain or ""
    if not wanted.strip() or not given.strip():
        return Judged(0.0, None, Bill(exchange, 0, 0.0))
    return await judged(judge, exchange, body["messages"], wanted, given)
