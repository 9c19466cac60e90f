"""Owns verdicts as the log keeps them, with what reaching them cost: one transaction, so that neither is there alone.

Must not know how a verdict was reached, nor what follows from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb

from proxy.derive import Derived
from proxy.ids import ulid
from proxy.log import Log
from router.charges import Answer, append, append_answers
from router.judging import Bill, judge_charges
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
    rows = [_row(candidate, verdict) for verdict in verdicts]
    places = ", ".join([f"(?, now(){', ?' * (len(_COLUMNS) - 2)})"] * len(verdicts))
    values = [value for row in rows for value in row]

    bought = _answers(candidate, costs)
    asked = [] if judge is None else judge_charges(candidate.task, judge, costs.judge)

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        if rows and not connection.execute("SELECT 1 FROM verdicts WHERE id = ?", [rows[0][0]]).fetchone():
            connection.execute(f"INSERT INTO verdicts ({', '.join(_COLUMNS)}) VALUES {places}", values)
        append(connection, asked)
        append_answers(connection, bought)

    if verdicts or costs.teacher or costs.judge or costs.hosted:
        log.transaction(work)
    return len(verdicts)


def _answers(candidate: Candidate, costs: Costs) -> list[Answer]:
    task, asked = candidate.task, candidate.card.get("model")
    teacher = [Answer(kind, said, task, said.model, said.model, exchange) for exchange, kind, said in costs.teacher]
    return teacher + [Answer("shadow", said, task, candidate.id, asked, exchange) for exchange, said in costs.hosted]


def _row(candidate: Candidate, v: Verdict) -> tuple[object, ...]:
    return (
        ulid(), candidate.task, candidate.id, v.exchange, v.kind, v.verdict, v.confidence, v.covered, v.answer,
        v.latency_ms, v.error, v.yardstick, v.yardstick_answer, v.share,
    )  # fmt: skip
