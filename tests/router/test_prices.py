import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.costs import Sizes
from router.prices import cost, model_sizes, price_map
from router.settings import Price

PRICES = {
    "m": Price(2.0, 8.0, 0.5),
    "plain": Price(2.0, 8.0),
    "ft:m": Price(3.0, 12.0),
}
COUNTS = st.none() | st.integers(0, 10**7)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Price]:
    return price_map({"own-model": Price(1.0, 1.0), "gpt-4o": Price(0.25, 0.5)})


def test_cached_tokens_have_their_own_price() -> None:
    assert cost(PRICES, "m", 1_000_000, 400_000, 500_000) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.5 * 8)


def test_without_a_cached_price_cached_tokens_cost_what_others_do() -> None:
    assert cost(PRICES, "plain", 1000, 400, 0) == cost(PRICES, "plain", 1000, None, 0) == pytest.approx(0.002)


def test_a_fine_tuned_model_costs_what_its_base_does_when_tuned() -> None:
    assert cost(PRICES, "ft:m:acme:queue:9xYz", 1_000_000, 0, 0) == pytest.approx(3.0)
    assert cost(PRICES, "ft:unheard-of:acme::1", 1, 0, 1) is None


@pytest.mark.parametrize(
    ("model", "prompt", "completion"), [("unheard-of", 1, 1), (None, 1, 1), ("", 1, 1), ("m", None, 1), ("m", 1, None)]
)
def test_what_is_not_known_is_unpriced_and_not_free(
    model: str | None, prompt: int | None, completion: int | None
) -> None:
    assert cost(PRICES, model, prompt, None, completion) is None


@given(COUNTS, COUNTS, COUNTS)
def test_a_cost_is_never_negative_and_caching_never_makes_it_dearer(
    prompt: int | None, cached: int | None, completion: int | None
) -> None:
    with_cache, without = (cost(PRICES, "m", prompt, hits, completion) for hits in (cached, 0))
    if with_cache is None or without is None:
        assert None in (prompt, completion)
    else:
        assert 0 <= with_cache <= without


def test_overrides_win_over_the_shipped_map_and_add_to_it(shipped: dict[str, Price]) -> None:
    assert shipped["gpt-4o"] == Price(0.25, 0.5)
    assert shipped["own-model"] == Price(1.0, 1.0)


def test_the_shipped_map_holds_dollars_per_million(shipped: dict[str, Price]) -> None:
    mini = shipped["gpt-4o-mini"]
    assert (mini.input, mini.output, mini.cached_input) == pytest.approx((0.15, 0.6, 0.075))


@pytest.mark.parametrize("prefix", ["anthropic/", "bedrock/"])
def test_a_translated_model_costs_what_it_does_under_its_own_name(prefix: str, shipped: dict[str, Price]) -> None:
    name = {"anthropic/": "claude-haiku-4-5", "bedrock/": "anthropic.claude-haiku-4-5-20251001-v1:0"}[prefix]
    assert shipped[prefix + name] == shipped[name]
    assert "gemini/" + name not in shipped
    assert model_sizes(Sizes(1, 2))(prefix + name) == model_sizes(Sizes(1, 2))(name) != Sizes(1, 2)


def test_litellm_is_read_but_not_imported() -> None:
    program = "import sys; from router.prices import price_map; assert price_map({}); print('litellm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_sizes_come_with_the_shipped_map() -> None:
    sizes = model_sizes(Sizes(1, 2))
    assert sizes("gpt-4o") == Sizes(128_000, 16_384)
    assert sizes("ft:gpt-4o-2024-08-06:org:name:id") == sizes("ft:gpt-4o-2024-08-06") != Sizes(1, 2)
    assert sizes("unheard-of") == Sizes(1, 2)
