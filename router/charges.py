"""Owns how the ledger is written: one immutable event for each thing that was paid, with an id made when it was.

An event that is there already is not written again, however often a transaction is tried, and by whom. What the teacher
answered to clients has its exchange's id, and enters with it (`proxy.ingest`). Must not know what anything costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import duckdb

from proxy.derive import Derived
from proxy.ids import ulid
from proxy.log import Log

_ID = ("id", "kind", "task", "model", "exchange")
_PAID = ("usd", "quantity", "unit", "moment", "prompt", "completion")
_SAID = ("asked", "prompt", "cached", "completion", "usage", "tier")
# Where the event's own id is known, it is the same event.
_NEW = "WHERE NOT EXISTS (SELECT 1 FROM spend s WHERE s.id = v.id AND s.kind = v.kind)"
_APPEND = f"""
INSERT INTO spend BY NAME
SELECT {", ".join(_ID)}, coalesce(CAST(moment AS TIMESTAMPTZ), now()) AS ts, CAST(usd AS DOUBLE) AS usd,
       CAST(quantity AS DOUBLE) AS quantity, unit, CAST(prompt AS BIGINT) AS prompt_tokens,
       CAST(completion AS BIGINT) AS completion_tokens
FROM (VALUES {{rows}}) AS v({", ".join(_ID + _PAID)}) {_NEW}
"""
# The price function is the one that ingest registers with the log's connection.
_APPEND_ANSWERS = f"""
INSERT INTO spend BY NAME
SELECT {", ".join(_ID)}, now() AS ts, 1.0 AS quantity, 'exchange' AS unit,
       price(CAST(asked AS VARCHAR), CAST(prompt AS BIGINT), CAST(cached AS BIGINT), CAST(completion AS BIGINT),
             CAST(usage AS VARCHAR), CAST(tier AS VARCHAR), epoch_us(now())) AS usd,
       CAST(prompt AS BIGINT) AS prompt_tokens, CAST(cached AS BIGINT) AS cached_tokens,
       CAST(completion AS BIGINT) AS completion_tokens
FROM (VALUES {{rows}}) AS v({", ".join(_ID + _SAID)}) {_NEW}
"""


@dataclass(frozen=True, slots=True)
class Charge:
    """What was paid, in US dollars, None is unpriced; at a `moment`, None is when it is written."""

    kind: str
    usd: float | None
    quantity: float
    unit: str
    task: str | None = None
    model: str | None = None
    exchange: str | None = None
    prompt: int | None = None
    completion: int | None = None
    """Tokens, where they are known."""
    id: str = field(default_factory=ulid)
    moment: datetime | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer that was paid for; `said` without counts is unpriced. `model` is named in the ledger."""

    kind: str
    said: Derived
    task: str
    model: str | None
    asked: str | None
    """The model whose price it has."""
    exchange: str
    id: str = field(default_factory=ulid)


def charge(
    log: Log,
    kind: str,
    usd: float | None,
    quantity: float,
    unit: str,
    task: str | None = None,
    model: str | None = None,
    exchange: str | None = None,
) -> None:
    """Append one event, such as hours of serving or of training."""
    one = Charge(kind, usd, quantity, unit, task, model, exchange)
    log.transaction(lambda connection: append(connection, [one]))


def append(connection: duckdb.DuckDBPyConnection, charges: Sequence[Charge]) -> None:
    """Inside the caller's transaction, append those that are not there yet."""
    _insert(connection, _APPEND, [[getattr(one, name) for name in _ID + _PAID] for one in charges])


def append_answers(connection: duckdb.DuckDBPyConnection, answers: Sequence[Answer]) -> None:
    """Likewise, at the price that ingest has for them."""
    rows = [
        [
            *(getattr(one, name) for name in _ID), one.asked, one.said.prompt_tokens, one.said.cached_tokens,
            one.said.completion_tokens, one.said.usage, one.said.service_tier,
        ]
        for one in answers
    ]  # fmt: skip
    _insert(connection, _APPEND_ANSWERS, rows)


def _insert(connection: duckdb.DuckDBPyConnection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    if rows:
        places = ", ".join(["(" + ", ".join("?" * len(rows[0])) + ")"] * len(rows))
        connection.execute(statement.format(rows=places), [value for row in rows for value in row])
