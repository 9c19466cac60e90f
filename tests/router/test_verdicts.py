from dataclasses import replace

import duckdb
import pytest

from proxy.derive import Derived
from proxy.ingest import Ingest
from proxy.log import Log
from router.judging import Bill
from router.verdicts import Costs, Verdict, record
from tests.router.conftest import TASK, known

ONE = Verdict("e1", "shadow", 0.5, 0.9, True, "billing", 3.0, None, 0.75, "shipping")


def paid(model: str) -> Derived:
    return Derived(model=model, prompt_tokens=9, completion_tokens=2)


def test_verdicts_and_their_costs_are_there_together(log: Log, ingest: Ingest) -> None:
    candidate = known(log)
    costs = Costs([("e1", "audit", paid("gpt-4o")), ("e1", "ceiling", paid("nobody"))], [Bill("e1", 2, 0.5)])
    assert record(log, candidate, [ONE, replace(ONE, exchange="e2", yardstick=None)], costs, "openai/judge") == 2
    rows = log.query("SELECT exchange, kind, verdict, covered, yardstick, yardstick_answer FROM verdicts ORDER BY id")
    assert rows == [("e1", "shadow", 0.5, True, 0.75, "shipping"), ("e2", "shadow", 0.5, True, None, "shipping")]
    charges = log.query("SELECT task, kind, model, usd FROM spend ORDER BY kind")
    assert charges == [
        (TASK, "audit", "gpt-4o", 10.0),
        (TASK, "ceiling", "nobody", None),
        (TASK, "judge", "openai/judge", 0.5),
    ]


def test_what_was_paid_is_recorded_where_there_is_no_verdict(log: Log, ingest: Ingest) -> None:
    assert record(log, known(log), [], Costs([("e1", "audit", paid("gpt-4o"))])) == 0
    assert log.query("SELECT kind, usd FROM spend") == [("audit", 10.0)]
    before = log.snapshot()
    assert record(log, known(log, "student-2"), [], Costs()) == 0
    assert log.query("SELECT count(*) FROM spend") == [(1,)]
    assert log.snapshot() >= before


def test_neither_is_there_alone(log: Log) -> None:
    """Without ingest nobody can price, so the charge fails, and the verdict with it."""
    with pytest.raises(duckdb.Error, match="price"):
        record(log, known(log), [ONE], Costs([("e1", "audit", paid("gpt-4o"))]))
    assert log.query("SELECT count(*) FROM verdicts") == [(0,)]
