"""Owns the way to a log that works: looks at it before it is opened, repairs what it can, and says what it did.

Must run in the one process that writes the log, before it does, and never on the request path. What is damaged is
moved aside, not deleted. Two things make a repair whole: the newest sound backup of the catalog, and the retained
segments, of which those that the log does not know enter it again. What neither holds is lost, and said. A PostgreSQL
catalog is PostgreSQL's to keep and to restore; only the segments are taken back there.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb

from proxy.backup import backups, trouble
from proxy.errors import Unavailable
from proxy.log import Log, catalog_file, open_log
from proxy.migrations import migrate
from proxy.settings import LogSettings
from proxy.spool import closed_segments

_log = logging.getLogger("stillroom.repair")

_FILES = """
SELECT f.data_file_id, t.table_name, f.path, f.path_is_relative, s.path, s.path_is_relative, t.path, t.path_is_relative
FROM ducklake_data_file f JOIN ducklake_table t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
JOIN ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
WHERE f.end_snapshot IS NULL
"""
_SPOOLED = ("exchanges", "spend", "segments")  # the tables whose rows the segments can give again


def working_log(settings: LogSettings, home: Path, spool: Path) -> Log:
    """The log, opened, repaired where it had to be, and at the newest version; a StillroomError when it cannot be."""
    try:
        catalog = catalog_file(settings, home)
        lost = _repaired(catalog) if catalog is not None else []
        log = open_log(settings, home)
        try:
            migrate(log)
            if set(lost) & set(_SPOOLED):
                _forget(log, closed_segments(spool / "ingested"))
            _take_back(log, spool)
        except BaseException:
            log.close()
            raise
        return log
    except (OSError, duckdb.Error, sqlite3.Error) as error:
        raise Unavailable(f"the log cannot be used: {str(error).splitlines()[0]}") from None


def _repaired(catalog: Path) -> list[str]:
    """Put a sound catalog in the place of a damaged or missing one; names the tables that lost files."""
    damage = trouble(catalog) if catalog.exists() else "it is missing"
    sound = damage is None
    if damage is not None and (catalog.exists() or backups(catalog)):
        sound = _restored(catalog, damage)
    return _without_missing_files(catalog) if sound else []


def _restored(catalog: Path, damage: str) -> bool:
    """Move the catalog aside and take the newest sound backup; False when there is none, for a new log."""
    aside = catalog.parent / f"damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 10**9:09}"
    aside.mkdir()
    for part in (catalog, *(catalog.with_name(catalog.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            part.rename(aside / part.name)
    for backup in backups(catalog):
        if trouble(backup) is None:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(backup.stat().st_mtime))
            _put(backup, catalog)
            _log.warning(
                "the log's catalog was damaged (%s) and the backup of %s took its place: candidates, verdicts, "
                "transitions and costs of serving since then are lost (look at `stillroom status`), exchanges enter "
                "again from the spool; the damaged catalog is kept in %s", damage, since, aside,
            )  # fmt: skip
            return True
    _log.warning(
        "the log's catalog was damaged (%s) and no backup is sound, so a new log begins: candidates, verdicts, "
        "transitions and exchanges older than spool.keep_days are lost, the others enter again from the spool; the "
        "damaged catalog is kept in %s, Parquet files stay where they are", damage, aside,
    )  # fmt: skip
    return False


def _put(backup: Path, catalog: Path) -> None:
    fresh = catalog.with_name(catalog.name + ".fresh")
    shutil.copyfile(backup, fresh)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.chmod(0o600)
    fresh.rename(catalog)


def _without_missing_files(catalog: Path) -> list[str]:
    """Take Parquet files that are gone out of the log, or no query on their table would work; names the tables."""
    with contextlib.closing(sqlite3.connect(catalog)) as connection, connection:
        row = connection.execute("SELECT value FROM ducklake_metadata WHERE key = 'data_path'").fetchone()
        if row is None or "://" in row[0]:  # An object store keeps its files itself.
            return []
        gone = [
            (number, table)
            for number, table, *path in connection.execute(_FILES)
            if not _placed(Path(row[0]), *path).exists()
        ]
        if not gone:
            return []
        numbers = [(number,) for number, _ in gone]
        now = "(SELECT max(snapshot_id) FROM ducklake_snapshot)"
        connection.executemany(f"UPDATE ducklake_data_file SET end_snapshot = {now} WHERE data_file_id = ?", numbers)
        connection.executemany(
            f"UPDATE ducklake_delete_file SET end_snapshot = {now} WHERE end_snapshot IS NULL AND data_file_id = ?",
            numbers,
        )
    tables = sorted({table for _, table in gone})
    _log.warning(
        "%d Parquet files of the log are missing and were taken out of its tables %s: what they held is lost, except "
        "for exchanges that are still in the spool, which enter again", len(gone), ", ".join(tables),
    )  # fmt: skip
    return tables


def _placed(data: Path, path: str, relative: int, schema: str, in_data: int, table: str, in_schema: int) -> Path:
    """Where a data file lies: each of schema, table and file is relative to the one before, or absolute."""
    folder = data / schema if in_data else Path(schema)
    folder = folder / table if in_schema else Path(table)
    return folder / path if relative else Path(path)


def _forget(log: Log, segments: Sequence[Path]) -> None:
    """Remove all that came from these segments, so that they can enter again as a whole."""
    if not segments:
        return
    names, files = [segment.name for segment in segments], [str(segment) for segment in segments]

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(
            """
            DELETE FROM spend WHERE kind = 'teacher' AND exchange IN (
              SELECT id FROM read_json($files, format = 'newline_delimited', columns = {id: 'VARCHAR'},
                                       ignore_errors = true, maximum_object_size = 1073741824))
            """,
            {"files": files},
        )
        connection.execute("DELETE FROM exchanges WHERE list_contains($names, segment)", {"names": names})
        connection.execute("DELETE FROM segments WHERE list_contains($names, name)", {"names": names})

    log.transaction(work)


def _take_back(log: Log, spool: Path) -> None:
    """Give the retained segments that the log does not know back to ingest."""
    rows = log.query("SELECT name FROM segments UNION SELECT DISTINCT segment FROM exchanges")
    known = {name for (name,) in rows}
    unknown = [segment for segment in closed_segments(spool / "ingested") if segment.name not in known]
    for segment in unknown:
        segment.rename(spool / segment.name)
    if unknown:
        _log.warning("the log does not know %d retained segments: they enter it again", len(unknown))
