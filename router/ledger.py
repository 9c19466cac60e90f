"""Owns the ledger: what was spent, what was avoided, what learning cost. US dollars throughout.

Every figure is a query over the log, so it can be computed again, and stays the same to the last digit when exchanges
go by age or are erased: `carried` counts those, and charges stay. What is unpriced is counted, never summed as zero.
Avoided spend is an estimate and says so: for each exchange the candidate served, the mean recorded teacher cost of
the same task's covered exchanges - the same part of the traffic - or of the whole task where none was shadowed.
"Audit" is all that the teacher was paid for evidence: audits, and asking it again for the ceiling. "Hosted" is what
hosted candidates were paid: in shadow, for answers to clients, and for answers that fell back. "Rationales" is what the
teacher was paid for saying why it had answered so, "repeats" for answering again what a student was to learn.
"""

from dataclasses import dataclass
from typing import Any

from proxy.derive import PAID
from proxy.ids import ulid
from proxy.log import Log

# Sums of decimals do not depend on their order, so not on how the log's files lie. What is no number is unpriced.
_MONEY = "SELECT *, TRY_CAST(usd AS DECIMAL(38, 15)) AS dollars FROM spend"
# What was paid to models beside the teacher's answers to clients.
_HOSTED = "('shadow', 'candidate', 'fallback')"
_TOLD = f"('audit', 'ceiling', 'judge', 'rationale', 'repeat', {_HOSTED[1:]}"
_TASKS = f"""
WITH money AS ({_MONEY}
), teacher AS (
  SELECT task, sum(dollars) AS usd, count(*) FILTER (dollars IS NULL) AS unpriced
  FROM money WHERE kind = 'teacher' GROUP BY task
), chat AS (
  SELECT task, CAST(sum(dollars) AS DOUBLE) / count(dollars) AS mean
  FROM money WHERE kind = 'teacher' AND path = '/v1/chat/completions' GROUP BY task
), covered AS (
  SELECT task, CAST(sum(dollars) AS DOUBLE) / count(dollars) AS mean FROM money
  WHERE kind = 'teacher' AND exchange IN (SELECT exchange FROM verdicts WHERE kind = 'shadow' AND covered)
  GROUP BY task
), other AS (
  SELECT task, sum(dollars) FILTER (kind IN ('audit', 'ceiling')) AS audit,
         sum(dollars) FILTER (kind = 'training') AS training, sum(dollars) FILTER (kind = 'judge') AS judge,
         count(*) FILTER (kind IN {_TOLD} AND dollars IS NULL) AS unpriced,
         CASE WHEN count(*) FILTER (kind = 'candidate' AND dollars IS NULL) = 0
              THEN coalesce(sum(dollars) FILTER (kind IN {_HOSTED}), 0) END AS hosted,
         sum(dollars) FILTER (kind = 'rationale') AS rationale, sum(dollars) FILTER (kind = 'repeat') AS repeat
  FROM money GROUP BY task
), counted AS (
  SELECT task, 1 AS exchanges, served_by, CAST(fallback IS NOT NULL AS INTEGER) AS fallbacks
  FROM exchanges WHERE list_contains($paid, path)
  UNION ALL SELECT task, exchanges, served_by, fallbacks FROM carried
), volume AS (
  SELECT task, CAST(sum(exchanges) AS BIGINT) AS exchanges, CAST(sum(fallbacks) AS BIGINT) AS fallbacks,
         CAST(coalesce(sum(exchanges) FILTER (served_by <> 'teacher'), 0) AS BIGINT) AS served
  FROM counted GROUP BY task
)
SELECT v.task, v.exchanges, v.served, v.fallbacks, CAST(t.usd AS DOUBLE),
       coalesce(t.unpriced, 0) + coalesce(o.unpriced, 0), v.served * coalesce(c.mean, a.mean),
       CAST(o.audit AS DOUBLE), CAST(o.training AS DOUBLE), CAST(o.judge AS DOUBLE),
       CAST(o.rationale AS DOUBLE), CAST(o.repeat AS DOUBLE),
       CAST(CASE WHEN o.unpriced IS NULL THEN 0 ELSE o.hosted END AS DOUBLE)
FROM volume v
LEFT JOIN teacher t ON t.task IS NOT DISTINCT FROM v.task
LEFT JOIN chat a ON a.task IS NOT DISTINCT FROM v.task
LEFT JOIN covered c ON c.task IS NOT DISTINCT FROM v.task
LEFT JOIN other o ON o.task IS NOT DISTINCT FROM v.task
ORDER BY t.usd DESC NULLS LAST, v.exchanges DESC, v.task
"""
_SERVING = f"""
SELECT CAST(sum(dollars) AS DOUBLE), CAST(sum(TRY_CAST(quantity AS DECIMAL(38, 15))) AS DOUBLE)
FROM ({_MONEY}) WHERE kind = 'serving'
"""


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task's figures; None is unknown, not zero: of `hosted_usd` while an answer to a client is unpriced."""

    task: str | None
    exchanges: int
    served: int
    fallbacks: int
    teacher_usd: float | None
    unpriced: int
    avoided_usd: float | None
    audit_usd: float
    training_usd: float
    judge_usd: float
    rationale_usd: float
    repeat_usd: float
    hosted_usd: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole ledger. `net_usd` = avoided - serving - training - audit - judge - rationales - repeats - hosted.

    It is None while a served exchange is unpriced, at the teacher or at the hosted candidate that answered it.
    """

    tasks: tuple[TaskLine, ...]
    teacher_usd: float
    unpriced: int
    avoided_usd: float | None
    serving_usd: float
    serving_hours: float
    training_usd: float
    audit_usd: float
    judge_usd: float
    rationale_usd: float
    repeat_usd: float
    hosted_usd: float | None
    net_usd: float | None


def report(log: Log) -> Report:
    """Compute the ledger from the log."""
    tasks = tuple(_line(*row) for row in log.query(_TASKS, {"paid": PAID}))
    ((serving, hours),) = log.query(_SERVING)
    serving, hours = serving or 0.0, hours or 0.0
    unknown = any(line.served and line.avoided_usd is None for line in tasks)
    avoided = None if unknown else sum(line.avoided_usd or 0.0 for line in tasks)
    training, audit, judge, rationale, repeat = (
        sum(getattr(line, f"{kind}_usd") for line in tasks)
        for kind in ("training", "audit", "judge", "rationale", "repeat")
    )
    answers = [line.hosted_usd for line in tasks]
    hosted = None if None in answers else sum(usd or 0.0 for usd in answers)
    return Report(
        tasks=tasks,
        teacher_usd=sum(line.teacher_usd or 0.0 for line in tasks),
        unpriced=sum(line.unpriced for line in tasks),
        avoided_usd=avoided,
        serving_usd=serving,
        serving_hours=hours,
        training_usd=training,
        audit_usd=audit,
        judge_usd=judge,
        rationale_usd=rationale,
        repeat_usd=repeat,
        hosted_usd=hosted,
        net_usd=None
        if avoided is None or hosted is None
        else avoided - serving - training - audit - judge - rationale - repeat - hosted,
    )


def _line(*columns: Any) -> TaskLine:
    return TaskLine(*(*columns[:7], *(usd or 0.0 for usd in columns[7:12]), columns[12]))


def charge(
    log: Log,
    kind: str,
    usd: float | None,
    quantity: float,
    unit: str,
    task: str | None = None,
    model: str | None = None,
    exchange: str | None = None,
) -> None:
    """Append one spend event, such as hours of serving or of training."""
    values: list[Any] = [ulid(), task, kind, model, exchange, usd, quantity, unit]
    columns = "id, ts, task, kind, model, exchange, usd, quantity, unit"
    log.transaction(
        lambda c: c.execute(f"INSERT INTO spend ({columns}) VALUES (?, now(), ?, ?, ?, ?, ?, ?, ?)", values)
    )
