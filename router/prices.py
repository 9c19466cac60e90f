"""Owns what a call costs: litellm's price map, read as data, and the operator's overrides. US dollars.

litellm itself is never imported: that takes seconds and reaches for the network. A model or a token count that is not
known has no price; None means unpriced, which is never shown as zero.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from proxy.costs import Sizes, SizesOf
from proxy.errors import Unavailable
from router.settings import Price

T = TypeVar("T")
_MAP = "model_prices_and_context_window_backup.json"


def price_map(overrides: Mapping[str, Price]) -> dict[str, Price]:
    """Prices per million tokens by model name; overrides win."""
    known = {
        name: Price(
            entry["input_cost_per_token"] * 1e6,
            entry["output_cost_per_token"] * 1e6,
            entry["cache_read_input_token_cost"] * 1e6 if entry.get("cache_read_input_token_cost") else None,
        )
        for name, entry in _shipped().items()
        if entry.get("input_cost_per_token") is not None and entry.get("output_cost_per_token") is not None
    }
    return {**known, **overrides}


def model_sizes(default: Sizes) -> SizesOf:
    """How long a model's prompts and answers can be, from the same map; `default` for what it does not say."""
    known = {
        name: Sizes(
            _length(entry, "max_input_tokens", default.context), _length(entry, "max_output_tokens", default.answer)
        )
        for name, entry in _shipped().items()
    }
    return lambda model: _find(known, model) or default


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


def _shipped() -> dict[str, Any]:
    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("litellm is not installed, and its price map with it: pip install stillroom again")
    shipped: dict[str, Any] = json.loads((Path(spec.submodule_search_locations[0]) / _MAP).read_text(encoding="utf-8"))
    return {**{_with_provider(name, entry): entry for name, entry in shipped.items()}, **shipped}


def _with_provider(name: str, entry: Mapping[str, Any]) -> str:
    """As clients name a model that is translated: `anthropic/claude-...` has its price under `claude-...`."""
    return name if "/" in name else f"{str(entry.get('litellm_provider')).removesuffix('_converse')}/{name}"


def _length(entry: Mapping[str, Any], name: str, default: int) -> int:
    length = entry.get(name)
    return length if type(length) is int and length > 0 else default


def _find(known: Mapping[str, T], model: str) -> T | None:
    """A fine-tuned model `ft:base:org:name:id` costs what `ft:base` does."""
    return known.get(model) or known.get(":".join(model.split(":")[:2]) if model.startswith("ft:") else "")
