"""Owns how long exchanges are kept, and that many small files become few. Must not know whose they are.

Whole days go, in UTC, so that whole files go; the texts that verdicts quote of them go too. What is small and is the
evidence or the ledger stays: verdicts, transitions, candidates, spend, and counts of what was dropped. An exchange does
not go before its segment, from which a repair would take it again, and count it twice. Retention wins over lineage: a
snapshot that a student was made from is forgotten like any other, since keeping it would keep its rows; the student's
bundle still lists the exchanges, and its weights are what they were. Rows leave the log at once and the disk a little
later, when nobody can be reading them any more.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from proxy.dropping import drop
from proxy.freeing import deleting, maintaining, merge, release, rewrite, vacuum
from proxy.log import Log
from proxy.settings import LogSettings

READING = timedelta(hours=1)  # The longest that a query, or a distillation between two of them, may need a snapshot.
_OLD = "ts < $limit AND coalesce(segment, '') NOT IN (SELECT unnest(CAST($kept AS VARCHAR[])))"


@dataclass(frozen=True, slots=True)
class Maintained:
    """What one run did: exchanges dropped by age, and files removed from disk."""

    dropped: int
    files: int


def maintain(settings: LogSettings, home: Path, spool: Path, keep_days: int, now: datetime) -> Maintained:
    """Drop what is older than `keep_days` (0: nothing), compact, and free; Unavailable while somebody else does.

    `spool` is where segments are kept. Idempotent, and safe to be killed: what is left over is done by a later run.
    """
    with maintaining(home, patience=0), deleting(settings, home) as log:
        dropped = _drop(log, spool, oldest_kept(keep_days, now)) if keep_days else 0
        rewrite(log)
        merge(log)
        files = release(log, now - READING, now)
        if dropped or files:
            vacuum(settings, home)
    return Maintained(dropped, files)


def oldest_kept(keep_days: int, now: datetime) -> datetime:
    """The midnight from which on exchanges are kept: today's, in UTC, less `keep_days`."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=keep_days)


def _drop(log: Log, spool: Path, limit: datetime) -> int:
    def work(connection: duckdb.DuckDBPyConnection) -> int:
        segments = connection.execute("SELECT DISTINCT segment FROM exchanges WHERE ts < ?", [limit]).fetchall()
        old = {"limit": limit, "kept": [name for (name,) in segments if name is not None and _kept(spool, name)]}
        connection.execute(
            "UPDATE verdicts SET answer = NULL, yardstick_answer = NULL "
            "WHERE (answer IS NOT NULL OR yardstick_answer IS NOT NULL) AND exchange IN "
            f"(SELECT id FROM exchanges WHERE {_OLD})",
            old,
        )
        return drop(connection, _OLD, old)

    return log.transaction(work) if log.query("SELECT 1 FROM exchanges WHERE ts < ? LIMIT 1", [limit]) else 0


def _kept(spool: Path, segment: str) -> bool:
    """Whether ingest still has the segment; it may be moving it from the first place to the second."""
    return (spool / segment).exists() or (spool / "ingested" / segment).exists()
