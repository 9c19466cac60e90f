"""Owns taking exchanges out of the log without changing the books. Must not know why they go.

Their charges stay, and so do their counts in `proxy.rollups`, by the transaction that deletes them: so the log counts
each exchange once, whenever a process is killed.
What was asked about an exchange quotes it, and goes with it.
"""

from collections.abc import Mapping
from typing import Any

import duckdb

from proxy.rollups import leaving

ASKED = ("rationales", "repeats")
"""Tables of what was asked about exchanges later, each with a column `exchange`."""


def drop(connection: duckdb.DuckDBPyConnection, which: str, parameters: Mapping[str, Any]) -> int:
    """Inside a transaction, count and delete the exchanges that `which`, a condition, names; how many."""
    leaving(connection, which, parameters)
    for table in ASKED:
        connection.execute(
            f"DELETE FROM {table} WHERE exchange IN (SELECT id FROM exchanges WHERE {which})", parameters
        )
    (dropped,) = connection.execute(f"DELETE FROM exchanges WHERE {which}", parameters).fetchone() or (0,)
    return int(dropped)
