"""Owns taking exchanges out of the log without changing the books. Must not know why they go.

What they add to the ledger beside their charges, which stay, is counted into `carried` by the transaction that deletes
them: so the log counts each exchange once, as a row or in a sum, whenever a process is killed. `carried` is append-only
and knows no exchange: per day (UTC), task, asked model and who served, the exchanges, how many of them fell back, and
their tokens, those of `estimated` exchanges being ours and `uncounted` exchanges having none.
What was asked about an exchange quotes it, and goes with it.
"""

from collections.abc import Mapping
from typing import Any

import duckdb

from proxy.derive import PAID

ASKED = ("rationales", "repeats")
"""Tables of what was asked about exchanges later, each with a column `exchange`."""

_CARRY = """
INSERT INTO carried BY NAME
SELECT CAST(ts AT TIME ZONE 'UTC' AS DATE) AS day, task, model, served_by, count(*) AS exchanges,
       count(fallback) AS fallbacks, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
       coalesce(sum(cached_tokens), 0) AS cached_tokens, coalesce(sum(completion_tokens), 0) AS completion_tokens,
       count(*) FILTER (usage_source = 'estimated') AS estimated,
       count(*) FILTER (prompt_tokens IS NULL OR completion_tokens IS NULL) AS uncounted
FROM exchanges WHERE list_contains($paid, path) AND {which}
GROUP BY ALL
"""


def drop(connection: duckdb.DuckDBPyConnection, which: str, parameters: Mapping[str, Any]) -> int:
    """Inside a transaction, carry forward and delete the exchanges that `which`, a condition, names; how many."""
    connection.execute(_CARRY.format(which=which), {"paid": PAID, **parameters})
    for table in ASKED:
        connection.execute(
            f"DELETE FROM {table} WHERE exchange IN (SELECT id FROM exchanges WHERE {which})", parameters
        )
    (dropped,) = connection.execute(f"DELETE FROM exchanges WHERE {which}", parameters).fetchone() or (0,)
    return int(dropped)
