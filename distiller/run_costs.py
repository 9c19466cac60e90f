"""Owns what a run has cost: what its distillation was charged, and hours that were spent on a machine for nothing.

A distillation charges its own hours when it is through. Where it failed or was stopped nobody has, and the machine was
paid for all the same. Must not know how a run is done.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

from distiller.runs import DISTILL, Run, cost
from proxy.log import Log
from router.charges import Charge, append

KINDS = ("training", "rationale", "repeat")
"""Of spend. What a judge was paid meanwhile is in the ledger alone: shadow may have asked it just as well."""


def bill(log: Log, training_hour: float) -> Callable[[Run, datetime], Decimal | None]:
    """For a run and a moment: its cost up to then, None where some of it is unpriced; only distillations cost."""

    def of(run: Run, now: datetime) -> Decimal | None:
        if run.kind != DISTILL or run.started is None:
            return Decimal(0)
        charged = log.query(
            "SELECT 1 FROM spend WHERE kind = 'training' AND task = ? AND ts >= ? AND ts <= ? LIMIT 1",
            [run.task, run.started, now],
        )
        if not charged:
            hours = (now - run.started).total_seconds() / 3600
            # By the run's id, so that it is one event however often this is tried.
            lost = Charge("training", hours * training_hour, hours, "hour", run.task, id=run.id, moment=now)
            log.transaction(lambda connection: append(connection, [lost]))
        return cost(log, run, now, KINDS)

    return of
