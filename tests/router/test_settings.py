import pytest

from proxy.errors import BadInput
from proxy.settings import parse
from router.settings import MoneySettings, Price, RouterSettings


def test_what_is_not_set_keeps_its_default() -> None:
    assert parse(RouterSettings, {"margin": 0.1, "canary_exchanges": 7}) == RouterSettings(
        margin=0.1, canary_exchanges=7
    )


def test_a_misspelt_key_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(BadInput, match=r"router\.margn.*'margin'"):
        parse(RouterSettings, {"margn": 0.1}, "router")


def test_prices_come_from_tables() -> None:
    money = parse(MoneySettings, {"engine_hour": 1, "prices": {"own-model": {"input": 1, "output": 2.5}}})
    assert money.engine_hour == 1.0
    assert money.prices == {"own-model": Price(1.0, 2.5, None)}


def test_a_price_without_output_tokens_is_refused_with_its_place() -> None:
    with pytest.raises(BadInput, match=r"money\.prices\.own-model\.output"):
        parse(MoneySettings, {"prices": {"own-model": {"input": 1, "output": "2"}}}, "money")


def test_the_price_of_cached_tokens_can_be_set() -> None:
    prices = parse(MoneySettings, {"prices": {"m": {"input": 1.0, "output": 2.0, "cached_input": 0.5}}}).prices
    assert prices["m"].cached_input == 0.5
