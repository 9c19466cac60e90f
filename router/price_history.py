"""Owns the log's memory of the price map: what it said of the models in use, since when, and in which release.

An upgrade of the map takes effect from the moment it is seen; charges of before stay, and what was asked before and
comes in later is charged as it was then. Append-only. Must not know what a call costs.
"""

import json
from collections.abc import Sequence
from datetime import datetime

import duckdb

from proxy.ids import ulid
from proxy.log import Log
from router.price_map import source
from router.prices import PriceList, Seen


def recorded(log: Log) -> list[Seen]:
    """All that was seen, in the order of time."""
    rows = log.query("SELECT model, ts, prices FROM prices ORDER BY ts, id")
    return [Seen(model, since, json.loads(prices)) for model, since, prices in rows]


def record(log: Log, prices: PriceList, now: datetime) -> list[str]:
    """Remember what the map says anew of models in use, from `now` on; names them. Cheap where there is nothing."""
    said = prices.unseen()
    if not said:
        return []
    found = [Seen(model, now, told) for model, told in sorted(said.items())]
    rows = [(ulid(), one.since, one.model, source(), json.dumps(one.prices)) for one in found]
    log.transaction(lambda connection: _append(connection, rows))
    prices.remember(found)
    return [one.model for one in found]


def refresh(log: Log, prices: PriceList, now: datetime) -> list[str]:
    """Look whether the map was upgraded meanwhile; names the models in use whose prices are new."""
    prices.reread()
    return record(log, prices, now)


def _append(connection: duckdb.DuckDBPyConnection, rows: Sequence[tuple[object, ...]]) -> None:
    places = ", ".join(["(?, ?, ?, ?, ?)"] * len(rows))
    connection.execute(f"INSERT INTO prices VALUES {places}", [value for row in rows for value in row])
