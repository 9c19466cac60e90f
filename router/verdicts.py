"""Owns verdicts as the log keeps them, with what reaching them cost: one transaction, so that neither is there alone.

Must not know how a verdict was reached, nor what follows from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb

from proxy.derive import Derived
from proxy.ids import ulid
from proxy.log import Log
from router.judging import Bill, charge_judge
from router.registry import Candidate

SCORE = "CASE WHEN gold IS NULL THEN verdict ELSE least(1.0, 1.0 + candidate_right - teacher_right) END"
"""What a verdict says, in SQL: on the right answer where one is known (`router.gold`), else as it was reached.

NULL where the comparison was not judged.
"""
COUNTED = f"CASE WHEN share IS NULL THEN {SCORE} ELSE coalesce(1.0 - (1.0 - verdict) / share, 1.0) END"
"""What it counts as in a mean, in SQL: in [1 - 1 / share, 1], by `router.sampling`."""
YARDSTICK = "CASE WHEN gold IS NULL OR yardstick IS NULL THEN yardstick ELSE 1.0 END"
"""Its yardstick: a score on the right answer is paired already. A measured one stays one, as it was drawn by chance."""
_COLUMNS = (
    "id", "ts", "task", "candidate", "exchange", "kind", "verdict", "confidence", "covered", "answer", "latency_ms",
    "error", "yardstick", "yardstick_answer", "share",
)  # fmt: skip
# The price function is the one that ingest registers with the log's connection.
_CHARGE = """
INSERT INTO spend BY NAME
SELECT ? AS id, now() AS ts, ? AS task, ? AS kind, ? AS model, ? AS exchange, 1.0 AS quantity, 'exchange' AS unit,
       price(?, CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT)) AS usd
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One scored comparison, as the table keeps it."""

    exchange: str
    kind: str
    verdict: float | None
    """In [0, 1]; None where the comparison was not judged."""
    confidence: float | None
    covered: bool
    answer: str | None
    latency_ms: float
    error: str | None
    yardstick: float | None = None
    """How the teacher agrees with itself on the same exchange, in [0, 1]."""
    yardstick_answer: str | None = None
    share: float | None = None
    """The chance it had to be judged, in (0, 1]; None: it was certain."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What comparing has cost so far; all lists grow as it goes, so that nothing paid is lost where it fails."""

    teacher: list[tuple[str, str, Derived]] = field(default_factory=list)
    """Exchange, kind of charge, and what the teacher answered."""
    judge: list[Bill] = field(default_factory=list)
    hosted: list[tuple[str, Derived]] = field(default_factory=list)
    """Exchange, and what a hosted candidate answered; without counts it is unpriced."""


def record(log: Log, candidate: Candidate, verdicts: Sequence[Verdict], costs: Costs, judge: str | None = None) -> int:
    """Append the verdicts and their costs, `judge` being who judged; returns how many verdicts there were."""
    places = ", ".join([f"(?, now(){', ?' * (len(_COLUMNS) - 2)})"] * len(verdicts))
    values = [value for verdict in verdicts for value in _row(candidate, verdict)]

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        if verdicts:
            connection.execute(f"INSERT INTO verdicts ({', '.join(_COLUMNS)}) VALUES {places}", values)
        if judge is not None:
            charge_judge(connection, candidate.task, judge, costs.judge)
        for exchange, kind, paid in costs.teacher:
            counts = [paid.prompt_tokens, paid.cached_tokens, paid.completion_tokens]
            connection.execute(_CHARGE, [ulid(), candidate.task, kind, paid.model, exchange, paid.model, *counts])
        for exchange, paid in costs.hosted:
            asked, counts = candidate.card["model"], [paid.prompt_tokens, paid.cached_tokens, paid.completion_tokens]
            connection.execute(_CHARGE, [ulid(), candidate.task, "shadow", candidate.id, exchange, asked, *counts])

    if verdicts or costs.teacher or costs.judge or costs.hosted:
        log.transaction(work)
    return len(verdicts)


def _row(candidate: Candidate, v: Verdict) -> tuple[object, ...]:
    return (
        ulid(), candidate.task, candidate.id, v.exchange, v.kind, v.verdict, v.confidence, v.covered, v.answer,
        v.latency_ms, v.error, v.yardstick, v.yardstick_answer, v.share,
    )  # fmt: skip
