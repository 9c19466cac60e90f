"""Owns copies of the log's SQLite catalog: made while the log is in use, checked before they count, a few kept.

Must not know what is in the log. The Parquet files are not copied: the catalog only ever points at whole ones. Run as
a program it makes one copy: the process that writes the log must not, because closing a file frees every lock the
process has on it, and DuckDB, which brings an SQLite of its own, would write on without.
"""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from proxy.errors import Unavailable

KEEP = 5
_BUSY_SECONDS = 30.0
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def back_up(catalog: Path) -> Path:
    """Make a copy in `backups/` beside the catalog; Unavailable when the catalog is damaged, OSError when it failed."""
    folder = catalog.parent / "backups"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "fresh"
    fresh.unlink(missing_ok=True)
    program = [sys.executable, "-m", "proxy.backup", str(catalog), str(fresh)]
    done = subprocess.run(program, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"the log's catalog could not be copied: {(done.stderr.splitlines() or ['no reason'])[-1]}")
    if damage := trouble(fresh):
        raise Unavailable(f"the log's catalog is damaged ({damage}): it is repaired when the controller starts")
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # of one look at the clock, or names could be out of order
    kept = folder / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}-{nanoseconds:09}.sqlite"
    fresh.rename(kept)
    for old in backups(catalog)[KEEP:]:
        old.unlink(missing_ok=True)
    return kept


def renew(catalog: Path) -> None:
    """Make a copy and delete the older ones, which hold or need what is gone from the log; raises as `back_up` does."""
    back_up(catalog)
    for old in backups(catalog)[1:]:
        old.unlink(missing_ok=True)


def backups(catalog: Path) -> list[Path]:
    """The copies there are, newest first."""
    return sorted((catalog.parent / "backups").glob("*.sqlite"), reverse=True)


def trouble(catalog: Path) -> str | None:
    """What is damaged in a catalog that exists, None where it is sound; Unavailable when it cannot be looked at."""
    if not catalog.stat().st_size:
        return "it is empty"
    try:
        with contextlib.closing(sqlite3.connect(catalog, timeout=_BUSY_SECONDS)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if verdict != "ok" or not tables:
                return str(verdict) if verdict != "ok" else "it has no tables"
            if "ducklake_metadata" not in tables:
                raise Unavailable(f"{catalog} is a database of something else: set log.catalog to another file")
            (snapshots,) = connection.execute("SELECT count(*) FROM ducklake_snapshot").fetchone()
            return None if snapshots else "it has no snapshot"
    except sqlite3.DatabaseError as error:
        # Where SQLite gives no code, Python could not read the text that was in a row.
        if getattr(error, "sqlite_errorcode", _DAMAGE[0]) & 0xFF in _DAMAGE or "no such table" in str(error):
            return str(error)
        raise Unavailable(f"the log's catalog {catalog} cannot be looked at: {error}") from None


def copy(source: Path, target: Path) -> None:
    """Copy a catalog that others may be writing to, as of one moment."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o600))
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", _BUSY_SECONDS, uri=True)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
