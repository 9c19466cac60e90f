"""Owns taking rows that were deleted or superseded off the disk. Must not know why they were deleted.

DuckLake only hides a deleted row: it stays in older snapshots, in files beside a list of what is gone, in small writes
kept inside the catalog, in the catalog's free pages and in its backups. Freeing goes through all five; each step is a
transaction of DuckLake's own, so a process killed at any point leaves a log that reads as before, and the next run does
the rest. One at a time: whoever expires snapshots takes from an open delete what it would notice its conflicts by, and
the delete would be lost without a word. Readers and other writers go on; what they began before `before` may fail and
is repeated.
"""

import contextlib
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from proxy.backup import renew
from proxy.errors import Unavailable
from proxy.log import Log, catalog_file, open_log
from proxy.settings import LogSettings

WRITING = timedelta(hours=1)  # No transaction lasts so long: an older file that no snapshot knows is a crash's.
_ATTEMPTS = 100
_PATIENCE = 60.0  # seconds for the catalog to be free of readers
_BREATH = 0.2
# DuckLake cannot sum up a table that has rows inside a SQLite catalog, and somebody has just written some.
_INLINED_AGAIN = "inlined-data aggregates"

_TABLES = ("exchanges", "verdicts", "spend", "candidates", "rationales", "repeats")
_PLACEHOLDERS = ("", "-")
# The catalog knows the least and the greatest value of each column, for reading less: texts of rows that are gone, too.
_STALE = f"""
SELECT DISTINCT t.table_name FROM __ducklake_metadata_lake.ducklake_table_column_stats s
JOIN __ducklake_metadata_lake.ducklake_table t ON t.table_id = s.table_id AND t.end_snapshot IS NULL
JOIN __ducklake_metadata_lake.ducklake_column c
  ON c.table_id = s.table_id AND c.column_id = s.column_id AND c.end_snapshot IS NULL AND c.column_type = 'varchar'
LEFT JOIN (
  SELECT f.table_id, f.column_id, min(f.min_value) AS least, max(f.max_value) AS greatest
  FROM __ducklake_metadata_lake.ducklake_file_column_stats f
  JOIN __ducklake_metadata_lake.ducklake_data_file d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
  GROUP BY ALL
) AS now ON now.table_id = s.table_id AND now.column_id = s.column_id
WHERE t.table_name IN {_TABLES}
  AND ((s.min_value IS DISTINCT FROM now.least AND coalesce(s.min_value, '-') NOT IN {_PLACEHOLDERS})
    OR (s.max_value IS DISTINCT FROM now.greatest AND coalesce(s.max_value, '-') NOT IN {_PLACEHOLDERS}))
"""

# A process of its own: DuckDB brings its own SQLite, and of two in one process each undoes the other's file locks.
_VACUUM = """
import sqlite3, sys, time
patience = float(sys.argv[2])
deadline = time.monotonic() + patience
catalog = sqlite3.connect(sys.argv[1], timeout=patience, isolation_level=None)
while True:
    try:
        catalog.execute("VACUUM")
        if catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0:
            break
    except sqlite3.OperationalError:  # Somebody reads or writes.
        pass
    if time.monotonic() >= deadline:
        sys.exit(1)
    time.sleep(0.2)
catalog.close()
"""


@contextlib.contextmanager
def maintaining(home: Path, patience: float) -> Iterator[None]:
    """Be the only one who deletes from the log; Unavailable when another still does after `patience` seconds."""
    home.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (home / "maintenance.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable(f"maintenance of {home} is under way: try again when it is done") from None
                time.sleep(_BREATH)
        yield


@contextlib.contextmanager
def deleting(settings: LogSettings, home: Path) -> Iterator[Log]:
    """A connection of its own for deleting: one core, days in UTC, and no change hidden inside the catalog."""
    log = open_log(settings, home)
    try:
        log.query("SET threads = 1")
        log.query("SET TimeZone = 'UTC'")
        log.query("SET ducklake_default_data_inlining_row_limit = 0")
        yield log
    finally:
        log.close()


def rewrite(log: Log) -> None:
    """Move what is inside the catalog into files, and write files without their deleted rows; nobody else notices."""
    for table in _TABLES:
        if log.query(f"SELECT 1 FROM {table} WHERE id IN {_PLACEHOLDERS} LIMIT 1"):  # Of a run that was killed.
            log.query(f"DELETE FROM {table} WHERE id IN {_PLACEHOLDERS}")
    _rewrite(log)
    for (table,) in log.query(_STALE):
        # Only a rewrite sums up anew, and a file that lost all its rows is not rewritten: so one that lost half of two.
        log.query(f"INSERT INTO {table} (id) SELECT unnest(?)", [list(_PLACEHOLDERS)])
        log.query(f"DELETE FROM {table} WHERE id = ?", [_PLACEHOLDERS[0]])
        _rewrite(log)
        log.query(f"DELETE FROM {table} WHERE id = ?", [_PLACEHOLDERS[1]])


def _rewrite(log: Log) -> None:
    for _ in range(_ATTEMPTS):
        log.query("CALL ducklake_flush_inlined_data('lake')")
        try:
            log.query("CALL ducklake_rewrite_data_files('lake', delete_threshold => 0)")
            return
        except duckdb.Error as error:
            if _INLINED_AGAIN not in str(error):
                raise
    raise Unavailable("the log is written to too fast to be rewritten: try again when there is less traffic")


def merge(log: Log) -> None:
    """Make few files of many, within a day; every snapshot still reads as before."""
    log.query("CALL ducklake_merge_adjacent_files('lake')")


def release(log: Log, before: datetime, now: datetime) -> int:
    """Forget snapshots older than `before`, remove files only they needed or a crash left; returns how many.

    Up to now nothing is waited for; else a file goes a day after `before`, at the latest two.
    """
    old = "SELECT snapshot_id FROM ducklake_snapshots('lake') WHERE snapshot_time < ? ORDER BY snapshot_id"
    versions = [row[0] for row in log.query(old, [before]) if row[0] != log.snapshot()]
    # With a SQLite catalog `older_than` compares texts: whatever is of the same day, in UTC, counts as older.
    if versions:
        log.query("CALL ducklake_expire_snapshots('lake', versions => ?)", [versions])
    if before < now:
        removed = log.query("CALL ducklake_cleanup_old_files('lake', older_than => ?)", [before - timedelta(days=1)])
    else:
        removed = log.query("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)")
    removed += log.query("CALL ducklake_delete_orphaned_files('lake', older_than => ?)", [now - WRITING])
    return len(removed)


def vacuum(settings: LogSettings, home: Path) -> Path | None:
    """Rewrite a SQLite catalog, empty its write-ahead log, and make its backups anew; Unavailable while it is in use.

    Returns the catalog; None, and nothing done, where it is another database's matter.
    """
    catalog = catalog_file(settings, home)
    if catalog is not None:
        program = [sys.executable, "-I", "-c", _VACUUM, str(catalog), str(_PATIENCE)]
        if subprocess.run(program, stderr=subprocess.DEVNULL).returncode:
            raise Unavailable(f"the catalog {catalog} is read or written without a pause: try again later")
        renew(catalog)
    return catalog
