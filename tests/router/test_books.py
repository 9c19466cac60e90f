from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from proxy.ids import ulid
from proxy.log import Log
from router.books import Means, read_books
from tests.router.conftest import PATH, TASK, add_rows, insert, judged, known

MAY, JUNE = datetime(2026, 5, 31, 23, 59, tzinfo=UTC), datetime(2026, 6, 1, 0, 0, tzinfo=UTC)


def paid(log: Log, ts: datetime, usd: float | None, kind: str = "teacher", **columns: Any) -> None:
    row = {"id": ulid(), "ts": ts, "task": TASK, "kind": kind, "usd": usd, "quantity": 1.0, "unit": "exchange"}
    add_rows(log, "spend", [row | {"path": PATH if kind == "teacher" else None} | columns])


def test_a_period_has_its_own_days_and_no_others(log: Log) -> None:
    for ts in (MAY, JUNE):
        paid(log, ts, 0.1)
        paid(log, ts, None)
        insert(log, ["x"], ts=ts, fallback="unsure")
        insert(log, ["x"], ts=ts, served_by="student-1")
        insert(log, ["x"], ts=ts, path="/v1/models")
    whole, may = read_books(log), read_books(log, date(2026, 5, 1), date(2026, 6, 1))
    assert [one.day for one in whole.entries] == [date(2026, 5, 31), date(2026, 6, 1)]
    (entry,) = may.entries
    assert (entry.task, entry.kind, entry.unit) == (TASK, "teacher", "exchange")
    assert (entry.events, entry.unpriced, entry.usd, entry.quantity) == (2, 1, Decimal("0.1"), 2)
    assert [(one.served_by, one.exchanges, one.fallbacks, one.served) for one in may.volumes] == [
        ("student-1", 1, 0, 1),
        ("teacher", 1, 1, 0),
    ]
    assert (may.since, may.until) == (date(2026, 5, 1), date(2026, 6, 1))
    assert read_books(log, since=date(2026, 6, 2)).entries == read_books(log, until=date(2026, 5, 31)).entries == []


def test_the_mean_is_of_exchanges_like_those_that_are_served(log: Log) -> None:
    one = known(log)
    (held,) = insert(log, ["held back"], ts=JUNE)
    judged(log, one, [1.0], exchange=held, kind="holdback")
    paid(log, JUNE, 2.0, exchange=held)
    (shadowed,) = insert(log, ["shadowed"], ts=MAY)
    judged(log, one, [1.0], exchange=shadowed)
    paid(log, MAY, 8.0, exchange=shadowed)
    judged(log, one, [1.0], exchange="audited", kind="audit")
    paid(log, JUNE, 4.0, "audit", exchange="audited")
    (beyond,) = insert(log, ["not covered"], ts=JUNE)
    judged(log, one, [1.0], exchange=beyond, covered=False)
    paid(log, JUNE, 1000.0, exchange=beyond)
    insert(log, ["served"], ts=JUNE, served_by=one.id)
    means = read_books(log).means
    assert means.of(TASK, date(2026, 6, 7)) == 3
    assert means.of(TASK, date(2026, 5, 7)) == 8
    assert float(means.of(TASK, date(2026, 7, 7)) or 0) == pytest.approx(14 / 3)
    assert means.of("another", date(2026, 6, 7)) is None


def test_without_such_exchanges_the_mean_is_of_the_whole_task() -> None:
    month = date(2026, 6, 1)
    means = Means({}, {(TASK, month): (Decimal(6), 3), (TASK, date(2026, 5, 1)): (Decimal(3), 1)})
    assert (means.of(TASK, date(2026, 6, 30)), means.of(TASK, date(2026, 7, 1))) == (2, Decimal(9) / 4)
    assert Means({}, {(TASK, month): (Decimal(0), 0)}).of(TASK, month) is None
