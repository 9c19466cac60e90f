from datetime import UTC, datetime, timedelta

import pytest

from proxy.kinds import Call
from proxy.log import Log
from router import prices as module
from router.price_history import record, recorded, refresh
from router.price_map import priced, read_map, source
from router.prices import PriceList
from router.settings import MoneySettings

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CALL = Call("gpt-4o", 1_000_000, 0, 0)


def upgraded(monkeypatch: pytest.MonkeyPatch, usd: float) -> None:
    shipped = read_map()
    shipped["gpt-4o"] = {**shipped["gpt-4o"], "input_cost_per_token": usd}
    monkeypatch.setattr(module, "read_map", lambda: shipped)


def test_models_in_use_are_remembered_once_with_date_and_source(log: Log) -> None:
    prices = PriceList(MoneySettings(), recorded(log))
    assert record(log, prices, NOW) == []
    prices(CALL)
    assert [record(log, prices, NOW) for _ in range(2)] == [["gpt-4o"], []]
    assert log.query("SELECT ts, model, source FROM prices") == [(NOW, "gpt-4o", source())]
    (found,) = recorded(log)
    assert (found.model, found.since, found.prices) == ("gpt-4o", NOW, priced(read_map()["gpt-4o"]))


def test_an_upgrade_of_the_map_changes_prices_from_when_it_is_seen_and_never_before(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = PriceList(MoneySettings(), recorded(log))
    prices(CALL)
    record(log, prices, NOW)
    upgraded(monkeypatch, 1e-6)
    later = NOW + timedelta(days=3)
    for again in (prices, PriceList(MoneySettings(), recorded(log))):  # While it runs, and at a later start.
        assert again(CALL) == 2.5
    assert refresh(log, prices, later) == ["gpt-4o"]
    for again in (prices, PriceList(MoneySettings(), recorded(log))):
        assert again(CALL) == 1.0
        assert again(Call("gpt-4o", 1_000_000, 0, 0, at=later - timedelta(seconds=1))) == 2.5
        assert record(log, again, later) == []
    assert len(recorded(log)) == 2


def test_a_model_that_left_the_map_keeps_its_price(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = PriceList(MoneySettings())
    prices(CALL)
    record(log, prices, NOW)
    monkeypatch.setattr(module, "read_map", dict)
    again = PriceList(MoneySettings(), recorded(log))
    assert (again(CALL), record(log, again, NOW)) == (2.5, [])
