"""Owns what a run has cost: what its distillation was charged, and hours that were spent on a machine for nothing.

A distillation charges its own hours when it is through, and also where it fails or is stopped: the machine was paid for
all the same. Where it was killed nobody has. Must not know how a run is done.
"""

import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

from distiller.runs import DISTILL, Run, cost
from proxy.log import Log
from router.charges import Charge, append, charge

KINDS = ("training", "rationale", "repeat")
"""Of spend. What a judge was paid meanwhile is in the ledger alone: shadow may have asked it just as well."""


def charge_hours(log: Log, task: str, training_hour: float, started: float, student: str | None = None) -> None:
    """Those since `started` (`time.perf_counter`), for the student that came of it, None for nothing."""
    hours = (time.perf_counter() - started) / 3600
    charge(log, "training", hours * training_hour, hours, "hour", task=task, model=student)


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
