"""Owns the log: a DuckLake (catalog + Parquet) that one process writes while any other reads.

Must not know what the tables mean; `proxy.migrations` makes them. Writers of several processes are serialised by the
catalog; a commit that lost the race is tried again as a whole, so a transaction's function must be repeatable.
"""

import contextlib
import importlib.util
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import duckdb
import duckdb_extensions

from proxy.errors import BadInput, Unavailable
from proxy.settings import LogSettings

T = TypeVar("T")
Row = tuple[Any, ...]

_ATTEMPTS = 40
# What DuckLake says when another writer held the catalog or committed first.
_LOST_RACE = (
    "database is locked", "conflict", "could not serialize", "unique constraint", "database table is locked",
    "does not have any columns",  # It read the catalog while another writer was half-way through making a table.
)  # fmt: skip


# What it says of a damaged catalog. A missing Parquet file is named, and so are segments, which are not the log's.
_DAMAGED = re.compile(
    r"disk image is malformed|malformed database|not a database|(no files|cannot open).*\.parquet", re.I
)


class Log:
    """One connection to the lake, used by one thread at a time."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Wrap a connection whose default catalog is the lake; see `open_log`."""
        self.connection = connection

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        """All rows of one statement."""
        return _retrying(lambda: self.connection.execute(sql, parameters).fetchall())

    def table(self, sql: str) -> tuple[list[str], list[Row]]:
        """Column names and rows, for a statement a person wrote; BadInput when it is not valid SQL."""
        try:
            if not duckdb.extract_statements(sql):
                raise BadInput("the query is empty: write one SQL statement")
            cursor = self.connection.execute(sql)
            return [column[0] for column in cursor.description or []], cursor.fetchall()
        except duckdb.Error as error:
            raise BadInput(f"the query failed: {str(error).splitlines()[0]}") from None

    def transaction(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Run `work` in one transaction, again from the start when another writer came first."""
        return _retrying(lambda: self._once(work))

    def snapshot(self) -> int:
        """The lake's current version: with it a dataset is one number."""
        return int(self.query("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")[0][0])

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _once(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        self.connection.execute("BEGIN")
        try:
            result = work(self.connection)
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # A failed COMMIT has already rolled back.
                self.connection.execute("ROLLBACK")
            raise
        return result


class Latest(Generic[T]):
    """What `read` makes of a log, read again only when that has changed: looking costs milliseconds."""

    def __init__(self, log: Log, read: Callable[[], T]) -> None:
        """Nothing is read yet."""
        self._log, self._read = log, read
        self._held: tuple[int, T] | None = None

    def now(self) -> T:
        """As of the log's current snapshot."""
        snapshot = self._log.snapshot()
        if self._held is None or self._held[0] != snapshot:
            self._held = snapshot, self._read()
        return self._held[1]


def open_log(settings: LogSettings, home: Path, read_only: bool = False) -> Log:
    """Attach the lake, creating it when missing and not `read_only`; Unavailable when it cannot be reached."""
    catalog = settings.catalog or f"sqlite:{catalog_file(settings, home)}"
    data = settings.data or str(home / "log" / "data")
    kind, _, target = catalog.partition(":")
    if kind not in ("sqlite", "postgres"):
        raise BadInput(f"log.catalog must start with sqlite: or postgres:, not {catalog!r}")
    if kind == "sqlite":
        if read_only and not Path(target).exists():
            raise Unavailable(f"there is no log at {target}: start `stillroom serve` first, or pass its --config")
        try:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the log's folder {Path(target).parent} cannot be made: {error.strerror}") from None
    if importlib.util.find_spec("pandas") is None:
        # DuckDB looks for it with each value it hands to Python: known to be missing, the disk is not searched again.
        sys.modules["pandas"] = None  # type: ignore[assignment]
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")  # A `python -c` is no terminal, whatever DuckDB takes it for.
    _load(connection, ["ducklake", f"{kind}_scanner", *(["httpfs"] if "://" in data else [])])
    options = [f"DATA_PATH {_quoted(data)}"]
    if kind == "sqlite":
        options += ["META_JOURNAL_MODE 'WAL'", "META_BUSY_TIMEOUT 5000"]
    if read_only:
        options += ["READ_ONLY"]
    statement = f"ATTACH {_quoted(f'ducklake:{catalog}')} AS lake ({', '.join(options)})"
    try:
        _retrying(lambda: connection.execute(statement))
    except (duckdb.Error, Unavailable) as error:
        connection.close()
        raise Unavailable(f"the log at {catalog} cannot be opened: {str(error).splitlines()[0]}") from None
    connection.execute("USE lake")
    connection.execute("SET TimeZone = 'UTC'")  # Or days, and so partitions, would be those of whoever writes.
    return Log(connection)


def catalog_file(settings: LogSettings, home: Path) -> Path | None:
    """The SQLite catalog; None where the catalog is no file of ours."""
    kind, _, target = settings.catalog.partition(":")
    if not kind:
        return home / "log" / "catalog.sqlite"
    return Path(target) if kind == "sqlite" else None


def _load(connection: duckdb.DuckDBPyConnection, extensions: Sequence[str]) -> None:
    for extension in extensions:
        duckdb_extensions.import_extension(extension, con=connection)
        connection.execute(f"LOAD {extension}")


def _retrying(work: Callable[[], T]) -> T:
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except duckdb.Error as error:  # Its class differs by where in DuckLake the race was lost.
            if attempt == _ATTEMPTS - 1 or not any(sign in str(error).lower() for sign in _LOST_RACE):
                raise _explained(error) from error
            time.sleep(random.uniform(0.01, 0.1))  # So that two losers do not meet again.
    raise AssertionError("unreachable")


def _explained(error: duckdb.Error) -> Exception:
    """The error itself, or Unavailable where it means damage, with the remedy."""
    if not isinstance(error, duckdb.InvalidInputException) and _DAMAGED.search(str(error)):
        line = str(error).splitlines()[0]
        return Unavailable(f"the log is damaged: start `stillroom serve` again, it repairs what it can ({line})")
    return error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
