"""Owns what a call costs: litellm's price map, read as data, and the operator's overrides. US dollars.

litellm itself is never imported: that takes seconds and reaches for the network. A model or a token count that is not
known has no price; None means unpriced, which is never shown as zero.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from proxy.errors import Unavailable
from router.settings import Price

_MAP = "model_prices_and_context_window_backup.json"


def price_map(overrides: Mapping[str, Price]) -> dict[str, Price]:
    """Prices per million tokens by model name; overrides win."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("litellm is not installed, and its price map with it: pip install stillroom again")
    raw = json.loads((Path(spec.submodule_search_locations[0]) / _MAP).read_text(encoding="utf-8"))
    known = {
        name: Price(
            entry["input_cost_per_token"] * 1e6,
            entry["output_cost_per_token"] * 1e6,
            entry["cache_read_input_token_cost"] * 1e6 if entry.get("cache_read_input_token_cost") else None,
        )
        for name, entry in raw.items()
        if entry.get("input_cost_per_token") is not None and entry.get("output_cost_per_token") is not None
    }
    return {**known, **overrides}


def cost(
    prices: Mapping[str, Price], model: str | None, prompt: int | None, cached: int | None, completion: int | None
) -> float | None:
    """US dollars for one call, or None where the model or its tokens are not known."""
    price = _find(prices, model or "")
    if price is None or prompt is None or completion is None:
        return None
    hit = min(cached or 0, prompt)
    cached_price = price.input if price.cached_input is None else price.cached_input
    return ((prompt - hit) * price.input + hit * cached_price + completion * price.output) / 1e6


def _find(prices: Mapping[str, Price], model: str) -> Price | None:
    """A fine-tuned model `ft:base:org:name:id` costs what `ft:base` does."""
    return prices.get(model) or prices.get(":".join(model.split(":")[:2]) if model.startswith("ft:") else "")
