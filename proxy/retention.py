"""Owns how long exchanges are kept, and that many small files become few. Must not know whose they are.

Whole days go, in UTC, so that whole files go; the texts that verdicts quote of them go too. What is small and is the
evidence or the ledger stays: verdicts, transitions, candidates, spend. Retention wins over lineage: a snapshot that a
student was made from is forgotten like any other, since keeping it would keep its rows; the student's bundle still
lists the exchanges, and its weights are what they were. Rows leave the log at once and the disk a little later, when
nobody can be reading them any more.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from proxy.backup import renew
from proxy.freeing import deleting, maintaining, merge, release, rewrite, vacuum
from proxy.log import Log, catalog_file
from proxy.settings import LogSettings

READING = timedelta(hours=1)  # The longest that a query, or a distillation between two of them, may need a snapshot.


@dataclass(frozen=True, slots=True)
class Maintained:
    """What one run did: exchanges dropped by age, and files removed from disk."""

    dropped: int
    files: int


def maintain(settings: LogSettings, home: Path, keep_days: int, now: datetime) -> Maintained:
    """Drop what is older than `keep_days` (0: nothing), compact, and free; Unavailable while somebody else does.

    Idempotent, and safe to be killed: what is left over is done by a later run.
    """
    with maintaining(home, patience=0), deleting(settings, home) as log:
        dropped = _drop(log, oldest_kept(keep_days, now)) if keep_days else 0
        rewrite(log)
        merge(log)
        files = release(log, now - READING, now)
        vacuum(settings, home)
    catalog = catalog_file(settings, home)
    if catalog is not None and (dropped or files):
        renew(catalog)
    return Maintained(dropped, files)


def oldest_kept(keep_days: int, now: datetime) -> datetime:
    """The midnight from which on exchanges are kept: today's, in UTC, less `keep_days`."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=keep_days)


def _drop(log: Log, limit: datetime) -> int:
    def work(connection: duckdb.DuckDBPyConnection) -> int:
        connection.execute(
            "UPDATE verdicts SET answer = NULL WHERE answer IS NOT NULL AND exchange IN "
            "(SELECT id FROM exchanges WHERE ts < ?)",
            [limit],
        )
        (dropped,) = connection.execute("DELETE FROM exchanges WHERE ts < ?", [limit]).fetchone() or (0,)
        return int(dropped)

    old = log.query("SELECT 1 FROM exchanges WHERE ts < ? LIMIT 1", [limit])
    return log.transaction(work) if old else 0
