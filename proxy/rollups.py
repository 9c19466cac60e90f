"""Owns sums over exchanges and spend that answer at once however long the log is: by the hour, and by the day.

Each row of `exchanges` and of `spend` is counted once, whoever wrote it. The log gives every row a number that only
grows, and that outlives updates, compaction, the forgetting of snapshots and the going of rows after it; `rolled_up`
holds, by table, the number up to which all is counted, and is moved by the transaction that counts. (The log's change
feed was tried and does worse: it tells an updated row again, a compacted file's rows again, and nothing at all of a
forgotten snapshot. Counting where rows are written would hold as long as no writer forgets it.) What is not counted
yet is added by whoever reads through `query`, from one snapshot: so sums are of now, and to the last digit what the
tables would give. Nobody may change what is counted of a row but by `rebuild`, and who deletes exchanges calls
`leaving` before: their counts go over into rows marked `dropped`, which nothing can compute again.

Rows of sums are only added; `compact` makes one of those that count the same. Nothing in them names an exchange or a
person. Hours and days are UTC's. Sums are whole numbers and decimals, which do not depend on the order of summing.
Must not know what the sums are for.
"""

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import duckdb

from proxy.derive import PAID
from proxy.log import Log, Row

BOUNDS_MS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000, 30_000, 60_000)
"""Up to which latencies are told apart, as `proxy.counters` does; a last count is of those above."""
FOLD_SECONDS = 15.0  # between two foldings: rows of sums stay few, and reading the rest stays quick
_INLINED = 2000  # rows: a folding that adds less than this makes no file
_LOCAL = 1_000_000_000_000_000_000  # Rows of an open transaction are numbered from here, until it commits.
_PLACEHOLDERS = "id IS DISTINCT FROM '' AND id IS DISTINCT FROM '-'"  # Of `proxy.freeing`, for moments.
DOLLARS = "TRY_CAST(usd AS DECIMAL(38, 15))"
"""What is no number is unpriced."""


def _histogram(name: str, column: str) -> dict[str, str]:
    """How many took up to each of the bounds, and not up to the one before; the last had no bound."""
    within = [f"{column} <= {BOUNDS_MS[0]}"]
    within += [f"{column} > {low} AND {column} <= {high}" for low, high in pairwise(BOUNDS_MS)]
    within += [f"{column} > {BOUNDS_MS[-1]}"]
    return {f"{name}_{number}": f"count(*) FILTER ({condition})" for number, condition in enumerate(within)}


_PATHS = "(" + ", ".join(f"'{path}'" for path in PAID) + ")"
HOUR_OF = {
    "hour": "date_trunc('hour', ts AT TIME ZONE 'UTC')", "task": "task", "model": "model",
    "path": f"CASE WHEN path IN {_PATHS} THEN path END", "served_by": "served_by", "teacher": "teacher",
}  # fmt: skip
"""What `exchanges_by_hour` tells apart, by name; `path` is NULL for what has no price."""
DAY_OF = {
    "day": "CAST(ts AT TIME ZONE 'UTC' AS DATE)", "task": "task", "kind": "kind", "model": "model", "path": "path",
    "unit": "unit",
}  # fmt: skip
"""What `spend_by_day` tells apart."""
COUNTS = {
    "exchanges": "count(*)", "fallbacks": "count(fallback)", "partials": "count(*) FILTER (partial)",
    "errors_4xx": "count(*) FILTER (status BETWEEN 400 AND 499)",
    "errors_5xx": "count(*) FILTER (status BETWEEN 500 AND 599)", "unanswered": "count(*) FILTER (status = 0)",
    "prompt_tokens": "coalesce(sum(prompt_tokens), 0)", "cached_tokens": "coalesce(sum(cached_tokens), 0)",
    "completion_tokens": "coalesce(sum(completion_tokens), 0)",
    "estimated": "count(*) FILTER (usage_source = 'estimated')",
    "uncounted": "count(*) FILTER (prompt_tokens IS NULL OR completion_tokens IS NULL)",
    "request_bytes": "coalesce(sum(request_bytes), 0)", "response_bytes": "coalesce(sum(response_bytes), 0)",
    "latency_us": "coalesce(sum(CAST(round(1000 * latency_ms) AS BIGINT)), 0)",
    "first_byte_us": "coalesce(sum(CAST(round(1000 * first_byte_ms) AS BIGINT)), 0)",
    **_histogram("latency", "latency_ms"), **_histogram("first_byte", "first_byte_ms"),
}  # fmt: skip
"""The whole numbers of `exchanges_by_hour`: tokens of `estimated` exchanges are ours, `uncounted` ones have none."""
SUMS = {
    "charges": ("BIGINT", "count(*)"), "unpriced": ("BIGINT", f"count(*) FILTER ({DOLLARS} IS NULL)"),
    "usd": ("DECIMAL(38, 15)", f"coalesce(sum({DOLLARS}), 0)"),
    "quantity": ("DECIMAL(38, 15)", "coalesce(sum(TRY_CAST(quantity AS DECIMAL(38, 15))), 0)"),
}  # fmt: skip
"""The numbers of `spend_by_day`; `usd` is of the charges that have a price."""

_HOUR_NAMES, _DAY_NAMES = ", ".join(HOUR_OF), ", ".join(DAY_OF)
_HOURS = f"""
SELECT {", ".join(f"{of} AS {name}" for name, of in HOUR_OF.items())}, false AS dropped,
       {", ".join(f"CAST({count} AS BIGINT) AS {name}" for name, count in COUNTS.items())}
FROM exchanges WHERE {_PLACEHOLDERS} AND {{which}} GROUP BY ALL
"""
_DAYS = f"""
SELECT {", ".join(f"{of} AS {name}" for name, of in DAY_OF.items())},
       {", ".join(f"CAST({count} AS {kind}) AS {name}" for name, (kind, count) in SUMS.items())}
FROM spend WHERE {_PLACEHOLDERS} AND {{which}} GROUP BY ALL
"""
_LEAVING = f"""
INSERT INTO exchanges_by_hour BY NAME
SELECT * EXCLUDE (way) REPLACE (way > 0 AS dropped, {", ".join(f"way * {name} AS {name}" for name in COUNTS)})
FROM ({{hours}}), (SELECT unnest([1, -1]) AS way)
"""
SUMS_TABLES = ("exchanges_by_hour", "spend_by_day", "rolled_up")
"""What `rebuild` makes from the other tables."""
_TABLES = {"exchanges": _HOURS, "spend": _DAYS}
_ADDED_UP = {
    "exchanges_by_hour": (
        "hour", f"{_HOUR_NAMES}, dropped",
        ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in COUNTS), "exchanges",
    ),
    "spend_by_day": (
        "day", _DAY_NAMES, ", ".join(f"CAST(sum({name}) AS {kind}) AS {name}" for name, (kind, _) in SUMS.items()),
        "charges",
    ),
}  # fmt: skip


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """The tables of sums, empty."""
    names = [f"{name} VARCHAR" for name in list(HOUR_OF)[1:]]
    counts = [f"{name} BIGINT" for name in COUNTS]
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS exchanges_by_hour (hour TIMESTAMP, {', '.join(names)}, dropped BOOLEAN, "
        f"{', '.join(counts)})"
    )
    names = [f"{name} VARCHAR" for name in list(DAY_OF)[1:]]
    sums = [f"{name} {kind}" for name, (kind, _) in SUMS.items()]
    connection.execute(f"CREATE TABLE IF NOT EXISTS spend_by_day (day DATE, {', '.join(names)}, {', '.join(sums)})")
    connection.execute("CREATE TABLE IF NOT EXISTS rolled_up (name VARCHAR, up_to BIGINT)")


def keep_small(connection: duckdb.DuckDBPyConnection) -> None:
    """Have small writes to the sums stay inside the catalog, whoever makes them: many files are slow to read."""
    for table in _ADDED_UP:
        connection.execute(f"CALL lake.set_option('data_inlining_row_limit', {_INLINED}, table_name => '{table}')")


class Folding:
    """Counts what is new in one log, now and then; `look` is for every round of the controller."""

    def __init__(self, log: Log) -> None:
        """Nothing is looked at yet."""
        self._log, self._due, self._seen = log, 0.0, -1

    def look(self, now: bool = False) -> None:
        """Count what is new, unless that was done within the last seconds and `now` is not said."""
        if (now or time.monotonic() >= self._due) and self._log.snapshot() != self._seen:
            self._log.transaction(fold)
            self._seen, self._due = self._log.snapshot(), time.monotonic() + FOLD_SECONDS


def fold(connection: duckdb.DuckDBPyConnection) -> None:
    """Inside a transaction, count what is not counted yet; rows the transaction itself wrote wait for another one."""
    for (name, up_to), (target, sums) in zip(_marks(connection), _targets(), strict=True):
        which = f"rowid > {up_to} AND rowid < {_LOCAL}"
        newest = connection.execute(f"SELECT max(rowid) FROM {name} WHERE {which}").fetchone() or (None,)
        if newest[0] is not None:
            connection.execute(f"INSERT INTO {target} BY NAME {sums.format(which=which)}")
            connection.execute("UPDATE rolled_up SET up_to = ? WHERE name = ?", [newest[0], name])


def leaving(connection: duckdb.DuckDBPyConnection, which: str, parameters: Mapping[str, Any]) -> None:
    """Inside the transaction that deletes the exchanges that `which` names, and before: keep their counts."""
    fold(connection)
    connection.execute(_LEAVING.format(hours=_HOURS.format(which=f"({which})")), parameters)


def rebuild(connection: duckdb.DuckDBPyConnection) -> None:
    """Inside a transaction, count everything anew; what has left the log keeps its counts."""
    connection.execute("DELETE FROM exchanges_by_hour WHERE NOT dropped")
    connection.execute("DELETE FROM spend_by_day")
    connection.execute("DELETE FROM rolled_up")
    connection.execute("INSERT INTO rolled_up SELECT unnest(?), -1", [list(_TABLES)])
    fold(connection)


def compact(log: Log) -> None:
    """Make one row of all that count the same; only for who holds `proxy.freeing.maintaining`."""
    for table in _ADDED_UP:
        log.transaction(lambda c, t=table: _compact(c, t))  # type: ignore[misc]


def query(log: Log, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """All rows of a SELECT over `hours`, `days` or both: the sums, and what is not counted yet as if it were."""
    return log.transaction(lambda c: c.execute(f"{_with(c)}{_after(sql)}", parameters or {}).fetchall())


def _with(connection: duckdb.DuckDBPyConnection) -> str:
    # Each number is written out: compared with a subquery, no row would be passed over while reading.
    parts = [
        f"{name} AS (SELECT * FROM {target} UNION ALL BY NAME {sums.format(which=f'rowid > {up_to}')})"
        for (_, up_to), (target, sums), name in zip(_marks(connection), _targets(), ("hours", "days"), strict=True)
    ]
    return f"WITH {', '.join(parts)}"


def _after(sql: str) -> str:
    """The statement as it follows a list of others; its own list is a part of that."""
    text = sql.lstrip()
    return f", {text[4:]}" if text[:5].upper().split() == ["WITH"] else f" {text}"


def _marks(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    held = dict(connection.execute("SELECT name, up_to FROM rolled_up").fetchall())
    return [(name, held[name]) for name in _TABLES]


def _targets() -> list[tuple[str, str]]:
    return list(zip(_ADDED_UP, _TABLES.values(), strict=True))


def _compact(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    time_of, names, sums, least = _ADDED_UP[table]
    several = (
        f"SELECT DISTINCT {time_of} FROM (SELECT {names} FROM {table} GROUP BY ALL HAVING count(*) > 1 OR "
        f"sum({least}) = 0)"
    )
    times = [moment for (moment,) in connection.execute(several).fetchall()]
    if not times:
        return
    within = f"{table}.{time_of} IN (SELECT unnest($times)) OR ($unknown AND {table}.{time_of} IS NULL)"
    chosen = {"times": [moment for moment in times if moment is not None], "unknown": None in times}
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE added_up AS SELECT {names}, {sums} FROM {table} WHERE {within} GROUP BY ALL "
        f"HAVING sum({least}) <> 0",
        chosen,
    )
    connection.execute(f"DELETE FROM {table} WHERE {within}", chosen)
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM added_up ORDER BY {time_of}")
    connection.execute("DROP TABLE added_up")
