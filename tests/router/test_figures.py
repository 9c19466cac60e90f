from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proxy.dropping import drop
from proxy.log import Log
from proxy.rollups import BOUNDS_MS, fold
from router.figures import (
    Charge,
    Times,
    by_model,
    by_task,
    charges,
    charges_by_day,
    series,
    totals,
    unpriced,
)
from tests.logs import migrated

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHAT = "/v1/chat/completions"
USUAL: Mapping[str, Any] = {
    "task": "triage", "model": "gpt-4o", "path": CHAT, "served_by": "teacher", "status": 200, "partial": False,
    "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 2, "request_bytes": 100, "response_bytes": 50,
    "latency_ms": 30.0, "first_byte_ms": 7.5,
}  # fmt: skip


def exchange(log: Log, identity: str, ts: datetime, **fields: Any) -> None:
    row = {**USUAL, "id": identity, "ts": ts, **fields}
    log.query(f"INSERT INTO exchanges ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


def charge(log: Log, ts: datetime, usd: float | None, **fields: Any) -> None:
    row = {"id": "s", "ts": ts, "task": "triage", "kind": "teacher", "model": "gpt-4o", "path": CHAT, "usd": usd,
           "quantity": 1.0, "unit": "exchange", **fields}  # fmt: skip
    log.query(f"INSERT INTO spend ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))


# Counted already, not counted yet, and half of each: it makes no difference to who reads.
@pytest.fixture(params=["counted", "new", "both"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    exchange(log, "a", NOON)
    exchange(log, "b", NOON + timedelta(minutes=59), served_by="student-1", latency_ms=3000.0)
    charge(log, NOON, 0.1)
    charge(log, NOON, None, kind="judge", model="judge", path=None)
    if request.param == "both":
        log.transaction(fold)
    exchange(log, "c", NOON + timedelta(hours=1), fallback="unsure", status=429, partial=True, first_byte_ms=None)
    exchange(log, "d", NOON + timedelta(days=1), task=None, status=0, latency_ms=90_000.0, teacher="german")
    exchange(log, "e", NOON + timedelta(days=1), path="/v1/files/mine", model=None, status=500)
    exchange(log, "f", NOON + timedelta(days=1), path="/v1/feedback", served_by="stillroom", task=None, model=None)
    charge(log, NOON + timedelta(days=1), 0.2)
    charge(log, NOON + timedelta(days=1), 0.7)
    charge(log, NOON + timedelta(days=1), None)
    if request.param == "counted":
        log.transaction(fold)
    return log


def test_totals_are_of_all_and_what_was_routed_of_what_has_a_price(log: Log) -> None:
    volume, latency, first_byte = totals(log)
    assert (volume.exchanges, volume.served, volume.share_served) == (4, 1, 0.25)
    assert (volume.fallbacks, volume.partials, volume.errors_4xx, volume.errors_5xx, volume.unanswered) == (1,) * 5
    assert (volume.prompt_tokens, volume.cached_tokens, volume.completion_tokens) == (60, 24, 12)
    assert (volume.request_bytes, volume.response_bytes) == (600, 300)
    assert (latency.seconds, sum(latency.counts), latency.counts[-1]) == (93.12, 6, 1)
    assert (first_byte.seconds, first_byte.counts) == (0.0375, (5, *[0] * len(BOUNDS_MS)))


def test_a_period_begins_and_ends_with_whole_hours(log: Log) -> None:
    soon = NOON + timedelta(minutes=30)
    assert totals(log, since=soon)[0].exchanges == 4
    assert totals(log, until=soon)[0].exchanges == 2
    assert totals(log, until=NOON)[0].exchanges == 0
    assert totals(log, until=NOON)[0].share_served is None
    assert totals(log, NOON + timedelta(hours=1), NOON + timedelta(hours=2))[0].exchanges == 1


def test_a_series_has_the_steps_that_had_something(log: Log) -> None:
    hours = [(point.start, point.volume.exchanges) for point in series(log, "hour")]
    assert hours == [(NOON, 2), (NOON + timedelta(hours=1), 1), (NOON + timedelta(days=1), 1)]
    midnight = NOON.replace(hour=0)
    days = [(point.start, point.volume.exchanges) for point in series(log, "day", task="triage")]
    assert days == [(midnight, 3), (midnight + timedelta(days=1), 0)]
    assert [(point.start, point.volume.errors_4xx) for point in series(log, "month")] == [(midnight, 1)]


def test_lines_by_task_and_by_model(log: Log) -> None:
    lines = by_task(log)
    assert [(line.task, line.volume.exchanges) for line in lines] == [("triage", 3), (None, 1)]
    assert (sum(lines[0].latency.counts), sum(lines[0].first_byte.counts)) == (4, 3)
    models = [(line.model, line.served_by, line.teacher, line.volume.exchanges) for line in by_model(log)]
    assert models == [
        ("gpt-4o", "teacher", None, 2), ("gpt-4o", "student-1", None, 1), ("gpt-4o", "teacher", "german", 1),
    ]  # fmt: skip
    assert [line.served_by for line in by_model(log, most=1)] == ["teacher"]
    assert len(by_model(log, task="triage")) == 2


def test_money_is_exact_and_unpriced_is_unknown(log: Log) -> None:
    one, two = charges(log)
    assert one == Charge("triage", "teacher", "gpt-4o", CHAT, "exchange", Decimal("1.0"), 4, 1, Decimal(4))
    assert (two.kind, two.usd, two.charges, two.unpriced) == ("judge", None, 1, 1)
    days = [(line.day, line.kind, line.usd, line.unpriced) for line in charges_by_day(log)]
    assert days == [
        (date(2026, 3, 1), "judge", None, 1), (date(2026, 3, 1), "teacher", Decimal("0.1"), 0),
        (date(2026, 3, 2), "teacher", Decimal("0.9"), 1),
    ]  # fmt: skip
    assert (unpriced(log), unpriced(log, since=NOON + timedelta(days=1))) == (2, 1)
    assert len(charges(log, until=NOON)) == 2  # The day it is within.
    assert charges(log, until=NOON.replace(hour=0)) == charges_by_day(log, task="other") == []


def test_figures_outlive_exchanges(log: Log) -> None:
    before = totals(log), series(log, "hour"), by_task(log), by_model(log), charges(log)
    assert log.transaction(lambda c: drop(c, "true", {})) == 6
    assert (totals(log), series(log, "hour"), by_task(log), by_model(log), charges(log)) == before


def test_quantiles_are_within_their_bucket_and_unknown_of_nothing() -> None:
    times = Times(1.0, (0, 10, 0, 10, *[0] * (len(BOUNDS_MS) - 3)))
    assert times.mean == 0.05
    assert times.quantile(0.25) == pytest.approx(0.0175)
    assert times.quantile(0.5) == 0.025
    assert times.quantile(0.75) == pytest.approx(0.075)
    assert times.quantile(1.0) == 0.1
    assert Times(90.0, (*[0] * len(BOUNDS_MS), 1)).quantile(0.5) == 60.0
    assert (Times().mean, Times().quantile(0.5)) == (None, None)
