"""Owns the ledger: what was spent, what was avoided, what learning cost. US dollars throughout.

Every figure is a query over the log, so it can be computed again. What is unpriced is counted, never summed as zero.
Avoided spend is an estimate and says so: for each exchange the candidate served, the mean recorded teacher cost of
the same task's covered exchanges - the same part of the traffic - or of the whole task where none was shadowed.
"""

from dataclasses import dataclass
from typing import Any

from proxy.derive import PAID
from proxy.ids import ulid
from proxy.log import Log

_TASKS = """
WITH teacher AS (
  SELECT task, sum(usd) AS usd, count(*) FILTER (usd IS NULL) AS unpriced
  FROM spend WHERE kind = 'teacher' GROUP BY task
), chat AS (
  SELECT s.task, avg(s.usd) AS mean FROM spend s JOIN exchanges e ON e.id = s.exchange
  WHERE s.kind = 'teacher' AND e.path = '/v1/chat/completions' GROUP BY s.task
), covered AS (
  SELECT s.task, avg(s.usd) AS mean FROM spend s
  WHERE s.kind = 'teacher' AND s.exchange IN (SELECT exchange FROM verdicts WHERE kind = 'shadow' AND covered)
  GROUP BY s.task
), other AS (
  SELECT task, sum(usd) FILTER (kind = 'audit') AS audit, sum(usd) FILTER (kind = 'training') AS training,
         count(*) FILTER (kind = 'audit' AND usd IS NULL) AS unpriced
  FROM spend GROUP BY task
), volume AS (
  SELECT task, count(*) AS exchanges, count(*) FILTER (served_by <> 'teacher') AS served,
         count(*) FILTER (fallback IS NOT NULL) AS fallbacks, count(DISTINCT model) AS models
  FROM exchanges WHERE list_contains($paid, path) GROUP BY task
)
SELECT v.task, v.exchanges, v.served, v.fallbacks, t.usd, coalesce(t.unpriced, 0) + coalesce(o.unpriced, 0),
       v.served * coalesce(c.mean, a.mean), o.audit, o.training
FROM volume v
LEFT JOIN teacher t ON t.task IS NOT DISTINCT FROM v.task
LEFT JOIN chat a ON a.task IS NOT DISTINCT FROM v.task
LEFT JOIN covered c ON c.task IS NOT DISTINCT FROM v.task
LEFT JOIN other o ON o.task IS NOT DISTINCT FROM v.task
ORDER BY t.usd DESC NULLS LAST, v.exchanges DESC
"""


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task's figures; None is unknown, not zero."""

    task: str | None
    exchanges: int
    served: int
    fallbacks: int
    teacher_usd: float | None
    unpriced: int
    avoided_usd: float | None
    audit_usd: float
    training_usd: float


@dataclass(frozen=True, slots=True)
class Report:
    """The whole ledger. `net_usd` = avoided - serving - training - audit, None while a served exchange is unpriced."""

    tasks: tuple[TaskLine, ...]
    teacher_usd: float
    unpriced: int
    avoided_usd: float | None
    serving_usd: float
    serving_hours: float
    training_usd: float
    audit_usd: float
    net_usd: float | None


def report(log: Log) -> Report:
    """Compute the ledger from the log."""
    tasks = tuple(_line(*row) for row in log.query(_TASKS, {"paid": PAID}))
    ((serving, hours),) = log.query("SELECT sum(usd), sum(quantity) FROM spend WHERE kind = 'serving'")
    serving, hours = serving or 0.0, hours or 0.0
    unknown = any(line.served and line.avoided_usd is None for line in tasks)
    avoided = None if unknown else sum(line.avoided_usd or 0.0 for line in tasks)
    training, audit = (sum(getattr(line, f"{kind}_usd") for line in tasks) for kind in ("training", "audit"))
    return Report(
        tasks=tasks,
        teacher_usd=sum(line.teacher_usd or 0.0 for line in tasks),
        unpriced=sum(line.unpriced for line in tasks),
        avoided_usd=avoided,
        serving_usd=serving,
        serving_hours=hours,
        training_usd=training,
        audit_usd=audit,
        net_usd=None if avoided is None else avoided - serving - training - audit,
    )


def _line(*columns: Any) -> TaskLine:
    return TaskLine(*columns[:7], columns[7] or 0.0, columns[8] or 0.0)  # type: ignore[call-arg]


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
    log.transaction(lambda c: c.execute("INSERT INTO spend VALUES (?, now(), ?, ?, ?, ?, ?, ?, ?)", values))
