"""Owns which jobs of the schedule are paused. Pauses are append-only, the last one of a job counts.

Must not know jobs: who pauses one makes sure that there is such a job.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a job is paused, and why."""

    since: datetime
    reason: str


def paused(log: Log) -> Mapping[str, Pause]:
    """The jobs that are paused now."""
    rows = log.query(
        "SELECT job, ts, reason FROM (SELECT * FROM pauses QUALIFY row_number() OVER "
        "(PARTITION BY job ORDER BY id DESC) = 1) WHERE paused"
    )
    return {job: Pause(since, reason) for job, since, reason in rows}


def put(log: Log, job: str, reason: str, now: datetime) -> None:
    """Nothing of this job is begun by itself until it is lifted."""
    _append(log, job, True, reason, now)


def lift(log: Log, job: str, reason: str, now: datetime) -> None:
    """End a pause; BadInput where there is none."""
    if job not in paused(log):
        raise BadInput(f"{job} is not paused")
    _append(log, job, False, reason, now)


def _append(log: Log, job: str, is_paused: bool, reason: str, now: datetime) -> None:
    values = [ulid(), now, job, is_paused, reason]
    log.transaction(lambda c: c.execute("INSERT INTO pauses VALUES (?, ?, ?, ?, ?)", values))
