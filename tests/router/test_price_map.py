import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from proxy.costs import Sizes
from router.price_map import model_sizes, names, priced, rates_of, read_map, source

ENTRY: dict[str, Any] = {
    "litellm_provider": "own", "max_input_tokens": 9, "input_cost_per_token": 2e-6, "output_cost_per_token": 8e-6,
    "cache_read_input_token_cost": 5e-7, "input_cost_per_token_batches": 1e-6, "output_cost_per_token_batches": 4e-6,
    "input_cost_per_token_flex": 1e-6, "input_cost_per_token_above_200k_tokens": 4e-6,
    "output_cost_per_token_above_200k_tokens": 1.6e-5, "cache_read_input_token_cost_above_200k_tokens": 1e-6,
    "input_cost_per_audio_token": 4e-5, "output_cost_per_reasoning_token": 8e-6,
}  # fmt: skip


def rates(tier: str = "", prompt: int = 1, **changes: Any) -> dict[str, float] | None:
    found = rates_of({**ENTRY, **changes}, tier, prompt)
    return None if found is None else {kind: float(usd) for kind, usd in found.items()}


def test_the_maps_words_become_dollars_a_million() -> None:
    assert rates() == {"input": 2.0, "output": 8.0, "cached_input": 0.5, "audio_input": 40.0, "reasoning": 8.0}
    assert rates_of(ENTRY, "", 1) == {
        "input": Decimal(2), "output": Decimal(8), "cached_input": Decimal("0.5"), "audio_input": Decimal(40),
        "reasoning": Decimal(8),
    }  # fmt: skip


def test_a_zero_for_what_is_cached_says_that_nobody_knows() -> None:
    assert "cached_input" not in (rates(cache_read_input_token_cost=0.0) or {})


def test_each_tier_has_its_own_prices_or_none() -> None:
    batch = rates("batch", input_cost_per_audio_token_batches=2e-5)
    assert batch == {"input": 1.0, "output": 4.0, "audio_input": 20.0}
    assert rates("flex") is None  # Nothing is said of its answers.
    assert rates("scale") is None


def test_what_costs_apart_in_the_usual_tier_is_not_known_in_another() -> None:
    found = rates_of({**ENTRY, "output_cost_per_reasoning_token": 9e-6}, "batch", 1) or {}
    assert found["reasoning"].is_nan()
    assert found["audio_input"].is_nan()


def test_beyond_a_length_the_whole_call_is_dearer() -> None:
    assert (rates(prompt=200_000) or {})["input"] == 2.0
    assert {kind: usd for kind, usd in (rates(prompt=200_001) or {}).items() if kind != "audio_input"} == {
        "input": 4.0, "output": 16.0, "cached_input": 1.0, "reasoning": 8.0,
    }  # fmt: skip
    assert rates("batch", 200_001) is None
    shorter = {key: usd for key, usd in ENTRY.items() if key != "output_cost_per_token_above_200k_tokens"}
    assert (rates_of(shorter, "", 300_000) or {})["output"] == 8


def test_of_several_lengths_the_longest_that_is_passed_counts() -> None:
    more = {"input_cost_per_token_above_500k_tokens": 6e-6, "output_cost_per_token_above_500k_tokens": 2e-5}
    assert [(rates(prompt=n, **more) or {})["input"] for n in (1, 300_000, 600_000)] == [2.0, 4.0, 6.0]


def test_a_model_without_prices_has_none() -> None:
    assert rates_of({"litellm_provider": "own", "input_cost_per_second": 1.0}, "", 1) is None


def test_what_is_remembered_of_an_entry_is_its_prices_of_tokens() -> None:
    assert priced(ENTRY) == {key: usd for key, usd in ENTRY.items() if "cost" in key}
    assert rates_of(priced(ENTRY), "", 300_000) == rates_of(ENTRY, "", 300_000)


def test_the_shipped_map() -> None:
    shipped = read_map()
    mini = rates_of(shipped["gpt-4o-mini"], "", 1000) or {}
    assert (mini["input"], mini["output"], mini["cached_input"]) == (Decimal("0.15"), Decimal("0.6"), Decimal("0.075"))
    assert source().startswith("litellm ")
    for name, entry in shipped.items():  # Whatever it holds, it can be read.
        for tier in ("", "batch", "flex", "priority"):
            assert rates_of(entry, tier, 300_000) is None or rates_of(priced(entry), tier, 300_000), name


@pytest.mark.parametrize("prefix", ["anthropic/", "bedrock/"])
def test_a_translated_model_costs_what_it_does_under_its_own_name(prefix: str) -> None:
    name = {"anthropic/": "claude-haiku-4-5", "bedrock/": "anthropic.claude-haiku-4-5-20251001-v1:0"}[prefix]
    shipped = read_map()
    assert shipped[prefix + name] == shipped[name]
    assert "gemini/" + name not in shipped
    assert model_sizes(Sizes(1, 2))(prefix + name) == model_sizes(Sizes(1, 2))(name) != Sizes(1, 2)


def test_litellm_is_read_but_not_imported() -> None:
    program = "import sys; from router.price_map import read_map; assert read_map(); print('litellm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_sizes_come_with_the_shipped_map() -> None:
    sizes = model_sizes(Sizes(1, 2))
    assert sizes("gpt-4o") == Sizes(128_000, 16_384)
    assert sizes("ft:gpt-4o-2024-08-06:org:name:id") == sizes("ft:gpt-4o-2024-08-06") != Sizes(1, 2)
    assert sizes("unheard-of") == Sizes(1, 2)
    assert (names("ft:a:b:c"), names("a")) == (("ft:a:b:c", "ft:a"), ("a",))
