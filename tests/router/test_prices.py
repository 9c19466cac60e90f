import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.kinds import Call
from router.price_map import priced, read_map
from router.prices import PriceList, Seen
from router.settings import MoneySettings, Price, PriceChange, TokenPrices

PRICES = {
    "m": Price(
        2.0, 8.0, 0.5, cache_write=3.0, audio_input=40.0, reasoning=10.0, tiers={"batch": TokenPrices(1.0, 4.0)}
    ),
    "plain": Price(2.0, 8.0),
    "ft:m": Price(3.0, 12.0),
}
MARCH, MAY = date(2026, 3, 1), date(2026, 5, 1)
CHANGES = (PriceChange(1.0, 1.0, model="m", since=MAY), PriceChange(7.0, 7.0, model="m", since=MARCH))
COUNTS = st.none() | st.integers(0, 10**7)
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def prices() -> PriceList:
    return PriceList(MoneySettings(prices=PRICES))


@pytest.fixture(scope="module")
def dated() -> PriceList:
    return PriceList(MoneySettings(prices=PRICES, price_changes=CHANGES))


def details(**counts: int) -> str:
    return json.dumps({"prompt_tokens_details": counts, "completion_tokens_details": counts})


def test_each_kind_of_token_has_its_own_price(prices: PriceList) -> None:
    usage = {
        "cache_creation_input_tokens": 100_000, "prompt_tokens_details": {"audio_tokens": 200_000},
        "completion_tokens_details": {"reasoning_tokens": 300_000},
    }  # fmt: skip
    call = Call("m", 1_000_000, 400_000, 500_000, json.dumps(usage))
    assert prices(call) == 0.3 * 2 + 0.4 * 0.5 + 0.1 * 3 + 0.2 * 40 + 0.2 * 8 + 0.3 * 10


def test_kinds_that_nobody_spoke_of_cost_what_is_known_of_them(prices: PriceList) -> None:
    assert prices(Call("plain", 1000, 400, 0)) == prices(Call("plain", 1000, None, 0)) == 0.002
    written = json.dumps({"cache_creation_input_tokens": 400, "cache_creation": {"ephemeral_1h_input_tokens": 100}})
    assert prices(Call("plain", 1000, 0, 0, written)) == (600 + 300 * 1.25 + 100 * 2) * 2 / 1e6
    assert prices(Call("plain", 1000, 0, 10, details(reasoning_tokens=10))) == 0.00208


@pytest.mark.parametrize("kind", ["audio_tokens", "image_tokens"])
def test_a_kind_without_a_known_price_leaves_the_call_unpriced(kind: str, prices: PriceList) -> None:
    assert prices(Call("plain", 1000, 0, 10, json.dumps({"completion_tokens_details": {kind: 1}}))) is None
    assert prices(Call("plain", 1000, 0, 10, json.dumps({"completion_tokens_details": {kind: 0}}))) is not None


def test_another_tier_has_its_own_prices_or_none(prices: PriceList) -> None:
    assert prices(Call("m", 1_000_000, 0, 0, tier="batch")) == 1.0
    assert prices(Call("m", 1_000_000, 500_000, 0, tier="batch")) == 1.0  # Nobody said that caching makes it cheaper.
    assert prices(Call("m", 1, 0, 0, tier="flex")) is None
    assert prices(Call("plain", 1, 0, 0, tier="batch")) is None
    assert prices(Call("gpt-4o", 1_000_000, 0, 1_000_000, tier="priority")) == 4.25 + 17.0


def test_a_fine_tuned_model_costs_what_its_base_does_when_tuned(prices: PriceList) -> None:
    assert prices(Call("ft:m:acme:queue:9xYz", 1_000_000, 0, 0)) == 3.0
    assert prices(Call("ft:unheard-of:acme::1", 1, 0, 1)) is None


@pytest.mark.parametrize(
    ("model", "prompt", "completion"), [("unheard-of", 1, 1), (None, 1, 1), ("", 1, 1), ("m", None, 1), ("m", 1, None)]
)
def test_what_is_not_known_is_unpriced_and_not_free(
    model: str | None, prompt: int | None, completion: int | None, prices: PriceList
) -> None:
    assert prices(Call(model, prompt, None, completion)) is None


@given(prompt=COUNTS, cached=COUNTS, completion=COUNTS)
def test_a_cost_is_never_negative_and_caching_never_makes_it_dearer(
    prompt: int | None, cached: int | None, completion: int | None, prices: PriceList
) -> None:
    with_cache, without = (prices(Call("m", prompt, hits, completion)) for hits in (cached, 0))
    if with_cache is None or without is None:
        assert None in (prompt, completion)
    else:
        assert 0 <= with_cache <= without


@given(
    prompt=st.integers(0, 10**6), completion=st.integers(0, 10**6), more=st.integers(0, 10**4),
    counts=st.fixed_dictionaries({kind: st.integers(0, 10**5) for kind in ("audio_tokens", "reasoning_tokens")}),
)  # fmt: skip
def test_a_bound_holds_whatever_kinds_the_tokens_turn_out_to_be(
    prompt: int, completion: int, more: int, counts: dict[str, int], prices: PriceList
) -> None:
    heard = {"prompt_tokens_details": {"audio_tokens": min(counts["audio_tokens"], prompt)}}
    thought = {"completion_tokens_details": {"reasoning_tokens": min(counts["reasoning_tokens"], completion)}}
    for kinds, usage in (("text", thought), ("any", {**heard, **thought})):
        most = prices(Call("m", prompt + more, 0, completion + more, at_most=kinds))  # type: ignore[arg-type]
        cost = prices(Call("m", prompt, 0, completion, json.dumps(usage)))
        assert most is not None
        assert cost is not None
        assert cost <= most


def test_a_price_holds_from_its_day_on(dated: PriceList) -> None:
    def at(*moment: int) -> float | None:
        return dated(Call("m", 1_000_000, 0, 0, at=datetime(*moment, tzinfo=UTC)))  # type: ignore[misc, arg-type]

    assert [at(2026, 2, 28, 23, 59, 59), at(2026, 3, 1), at(2026, 4, 30, 23, 59, 59), at(2026, 5, 1)] == [2, 7, 7, 1]
    assert dated(Call("m", 1_000_000, 0, 0)) == 1.0  # Just now.
    assert dated(Call("plain", 1_000_000, 0, 0)) == 2.0


def test_an_operators_prices_win_over_the_map_from_their_day_on() -> None:
    change = PriceChange(0.0, 1.0, model="gpt-4o", since=MAY)
    prices = PriceList(MoneySettings(price_changes=(change,)))
    before, after = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    assert [prices(Call("gpt-4o", 1_000_000, 0, 0, at=at)) for at in (before, after)] == [2.5, 0.0]


def seen(since: datetime, **changes: Any) -> Seen:
    return Seen("gpt-4o", since, {**priced(read_map()["gpt-4o"]), **changes})


def test_what_the_map_said_before_holds_for_what_was_asked_before() -> None:
    first = seen(NOW, input_cost_per_token=9e-6)
    prices = PriceList(MoneySettings(), [first])
    assert prices(Call("gpt-4o", 1_000_000, 0, 0)) == 9.0  # Until the change was seen, too.
    prices.remember([seen(NOW + timedelta(days=9))])
    asked = [NOW - timedelta(days=400), NOW, NOW + timedelta(days=8), NOW + timedelta(days=9)]
    assert [prices(Call("gpt-4o", 1_000_000, 0, 0, at=at)) for at in asked] == [9.0, 9.0, 9.0, 2.5]


def test_only_models_in_use_are_to_be_remembered() -> None:
    prices = PriceList(MoneySettings(prices={"m": Price(1.0, 1.0)}))
    assert prices.unseen() == {}
    for model in ("gpt-4o", "m", "unheard-of"):
        prices(Call(model, 1, 0, 1))
    assert prices.unseen() == {"gpt-4o": priced(read_map()["gpt-4o"])}
    prices.remember([seen(NOW)])
    assert prices.unseen() == {}
    assert PriceList(MoneySettings(), [seen(NOW, input_cost_per_token=9e-6)]).unseen() != {}
    assert len(prices) > 1000
