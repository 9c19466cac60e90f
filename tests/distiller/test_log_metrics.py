import asyncio
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from distiller import log_metrics
from distiller.log_metrics import LogMetrics, days_left, keys_used
from distiller.runs import FAILED, End, Wish, record
from distiller.settings import Settings
from proxy.accounts import Accounts
from proxy.keys import create_key, revoke_key
from proxy.limits import NANO, Limits, Need, Reservation, Used
from proxy.log import Log
from proxy.settings import SunsetSettings, TeacherSettings
from router.lifecycle import rollback
from router.registry import CANARY, RETIRED, candidates, move
from router.sunset import sunsets
from tests.logs import migrated
from tests.router.conftest import TASK, insert, known

NOW = datetime.now(UTC)


class _Held(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def read(settings: Settings) -> CollectorRegistry:
    """As the controller reads: in its loop, until the first reading is there."""

    async def work() -> LogMetrics:
        told, stop = LogMetrics(settings), asyncio.Event()
        assert told.metrics() == ()
        running = asyncio.create_task(told.run(stop))
        async with asyncio.timeout(120):
            while not told.metrics():
                await asyncio.sleep(0.02)
        stop.set()
        await running
        return told

    registry = CollectorRegistry()
    registry.register(_Held(asyncio.run(work()).metrics()))
    return registry


def test_an_empty_log_has_zeros_for_what_can_come_and_nothing_for_what_is_unknown(log: Log, tmp_path: Path) -> None:
    value = read(Settings(home=str(tmp_path))).get_sample_value
    assert value("stillroom_spent_usd_total", {"kind": "judge"}) == 0
    assert value("stillroom_retired_total", {"stage": "live", "cause": "evidence"}) == 0
    assert value("stillroom_runs_total", {"kind": "distill", "outcome": "failed"}) == 0
    assert value("stillroom_unpriced_charges") == 0
    assert value("stillroom_budget_used_ratio", {"budget": "key"}) is None
    assert value("stillroom_teacher_sunset_days") is None
    assert value("stillroom_net_usd") == 0


def test_money_and_what_has_no_price_of_today_and_yesterday(log: Log, tmp_path: Path) -> None:
    for usd, kind, age in ((0.25, "teacher", 9), (0.5, "judge", 1), (None, "judge", 0), (None, "teacher", 9),
                           (2.0, "of tomorrow", 0)):  # fmt: skip
        ts = NOW - timedelta(days=age)
        log.query("INSERT INTO spend (id, ts, task, kind, usd) VALUES ('x', ?, ?, ?, ?)", [ts, TASK, kind, usd])
    insert(log, ["a"])
    value = read(Settings(home=str(tmp_path))).get_sample_value
    assert value("stillroom_spent_usd_total", {"kind": "teacher"}) >= 0.25
    assert value("stillroom_spent_usd_total", {"kind": "judge"}) == 0.5
    assert value("stillroom_spent_usd_total", {"kind": "other"}) == 2.0
    assert value("stillroom_unpriced_charges") == 1
    assert value("stillroom_tokens_total", {"kind": "prompt"}) is not None


def test_a_retirement_says_from_which_stage_and_whether_evidence_asked_for_it(log: Log, tmp_path: Path) -> None:
    one, two = known(log, "one"), known(log, "two")
    move(log, one, RETIRED, "audit refuted parity on 80 exchanges: upper bound 0.9")
    move(log, candidates(log)[1], CANARY, "for the test", share=0.1)
    assert [each.id for each in rollback(log, TASK, "audit week")] == [two.id]
    value = read(Settings(home=str(tmp_path))).get_sample_value
    assert value("stillroom_retired_total", {"stage": "canary", "cause": "operator"}) == 1
    assert value("stillroom_retired_total", {"stage": "canary", "cause": "evidence"}) == 0
    shadow = [
        value("stillroom_retired_total", {"stage": "shadow", "cause": cause}) for cause in ("evidence", "superseded")
    ]
    assert sum(filter(None, shadow)) == 1


def test_runs_that_ended_by_kind_and_outcome(log: Log, tmp_path: Path) -> None:
    for number, kind in enumerate(["distill", "retention", "of tomorrow"]):
        wish = Wish(f"job {number}", kind, f"cause {number}", "for the test", NOW, task=TASK)
        assert record(log, wish, End(FAILED, "as a test"), NOW)
    value = read(Settings(home=str(tmp_path))).get_sample_value
    for kind in ("distill", "retention", "other"):
        assert value("stillroom_runs_total", {"kind": kind, "outcome": "failed"}) == 1
    assert value("stillroom_runs_total", {"kind": "distill", "outcome": "ok"}) == 0


def test_the_key_nearest_to_its_budget_counts_and_no_name_is_told(log: Log, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    assert keys_used(settings, NOW) is None
    for name, budget in (("team-a", 10.0), ("team-b", 2.0), ("team-c", None), ("gone", 1.0)):
        create_key(settings.keys, name, (), Limits(budget_usd=budget))
    revoke_key(settings.keys, "gone")
    accounts = Accounts(settings.limits)
    for name, usd in (("team-a", 4), ("team-b", 1), ("gone", 1)):
        made = accounts.reserve(name, Limits(budget_usd=10), Need(), NOW.timestamp())
        assert isinstance(made, Reservation)
        accounts.settle(made, Used(nano=usd * NANO), NOW.timestamp())
    accounts.close()
    registry = read(settings)
    assert registry.get_sample_value("stillroom_budget_used_ratio", {"budget": "key"}) == 0.5
    assert "team-" not in str(list(registry.collect()))


def test_days_until_the_next_model_ends(log: Log, tmp_path: Path) -> None:
    def ending(model: str, days: int, successor: str = "") -> SunsetSettings:
        return SunsetSettings(model, (NOW + timedelta(days=days)).date(), successor)

    declared = (ending("a", 40), ending("b", 9, "b2"), ending("c", -3, "c2"), ending("d", -3))
    left = days_left(sunsets(log, declared, NOW), NOW)
    assert left is not None
    assert 8 <= left <= 9
    value = read(Settings(home=str(tmp_path), teacher=TeacherSettings(sunsets=declared))).get_sample_value
    assert value("stillroom_teacher_sunset_days") == pytest.approx(left, abs=0.1)
    assert value("stillroom_teacher_models_ended") == 1
    assert days_left(sunsets(log, (SunsetSettings("a", date(2020, 1, 1), "b"),), NOW), NOW) is None


def test_a_log_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_metrics, "READ_SECONDS", 0.05)

    async def work() -> None:
        told, stop = LogMetrics(Settings(home=str(tmp_path))), asyncio.Event()
        running = asyncio.create_task(told.run(stop))
        async with asyncio.timeout(120):
            while "could not be read" not in caplog.text:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(lambda: migrated(tmp_path).close())
            while not told.metrics():
                await asyncio.sleep(0.02)
        stop.set()
        await running

    asyncio.run(work())
