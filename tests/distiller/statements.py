"""A small ledger that was really written, with a task whose name is meant to do harm."""

from datetime import UTC, datetime

from distiller.statement import Statement, statement
from proxy.ids import ulid
from proxy.log import Log
from router.charges import charge
from router.registry import LIVE, move
from tests.router.conftest import PATH, TASK, add_rows, insert, known

HOSTILE = '=HYPERLINK("x")<script>alert(1)</script>\u65e5'
NOW = datetime(2026, 6, 20, 12, tzinfo=UTC)


def booked(log: Log) -> None:
    """Two days of June: what is said of them in the tests is reckoned by hand."""
    move(log, known(log), LIVE, "for the test")
    for day, task, usd in ((18, TASK, 0.3), (18, TASK, None), (19, TASK, 0.1), (19, HOSTILE, 2.5)):
        ts = datetime(2026, 6, day, 12, tzinfo=UTC)
        (exchange,) = insert(log, ["asked"], task=task, ts=ts)
        row = {"id": exchange, "ts": ts, "task": task, "kind": "teacher", "usd": usd, "quantity": 1.0, "path": PATH}
        add_rows(log, "spend", [row | {"unit": "exchange", "model": "gpt-4o", "exchange": exchange}])
        insert(log, ["served"], task=TASK, ts=ts, served_by="student-1")
    for kind, usd, quantity, unit, task in (
        ("audit", 0.05, 1.0, "exchange", TASK), ("judge", 0.01, 2.0, "question", TASK),
        ("serving", 0.04, 0.5, "idle hour", None), ("serving", 0.02, 0.25, "busy hour", None),
    ):  # fmt: skip
        one = {"id": ulid(), "ts": datetime(2026, 6, 19, tzinfo=UTC), "kind": kind, "usd": usd, "quantity": quantity}
        add_rows(log, "spend", [one | {"unit": unit, "task": task}])
    charge(log, "training", 9.0, 1.0, "hour", TASK, "student-1")  # Today, whenever that is: outside the period.


def made(log: Log) -> Statement:
    booked(log)
    return statement(log, datetime(2026, 6, 1).date(), datetime(2026, 7, 1).date(), 0.1, NOW)
