"""Owns the record of what was done by hand from the dashboard: the table `actions`, which only grows.

Must not know what actions there are.
"""

from dataclasses import dataclass
from datetime import datetime

from distiller.dashboard.guard import Deed
from proxy.ids import ulid
from proxy.log import Log


@dataclass(frozen=True, slots=True)
class Action:
    """One deed, and when it was done."""

    ts: datetime
    who: str
    role: str
    action: str
    target: str
    detail: str
    outcome: str


def record(log: Log, deed: Deed) -> None:
    """Append one."""
    values = [ulid(), deed.who, deed.role, deed.action, deed.target, deed.detail, deed.outcome]
    log.transaction(lambda c: c.execute("INSERT INTO actions VALUES (?, now(), ?, ?, ?, ?, ?, ?)", values))


def recent(log: Log, limit: int) -> list[Action]:
    """The newest first."""
    columns = "ts, who, role, action, target, detail, outcome"
    return [Action(*row) for row in log.query(f"SELECT {columns} FROM actions ORDER BY id DESC LIMIT ?", [limit])]
