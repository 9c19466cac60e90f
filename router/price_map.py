"""Owns litellm's price map, read as data: what its words mean, and how long a model's prompts and answers can be.

litellm itself is never imported: that takes seconds and reaches for the network. Must not know who asks for a price,
nor that prices change.
"""

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from proxy.costs import Sizes, SizesOf
from proxy.errors import Unavailable

T = TypeVar("T")
Rates = Mapping[str, Decimal]
"""US dollars for a million tokens by kind, named as in `[money.prices]`; NaN: what is known does not hold here."""

_FILE = "model_prices_and_context_window_backup.json"
_MILLION = 1_000_000
# The map's names. Those of the first group are said for each tier and length, those of the second for few.
_USUAL: Mapping[str, str] = MappingProxyType(
    {
        "input": "input_cost_per_token", "output": "output_cost_per_token",
        "cached_input": "cache_read_input_token_cost", "cache_write": "cache_creation_input_token_cost",
        "cache_write_hour": "cache_creation_input_token_cost_above_1hr",
    }
)  # fmt: skip
_SPECIAL: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "audio_input": ("input_cost_per_audio_token", ""), "audio_output": ("output_cost_per_audio_token", ""),
        "cached_audio_input": ("cache_read_input_audio_token_cost", ""),
        "image_input": ("input_cost_per_image_token", "input"), "image_output": ("output_cost_per_image_token", ""),
        "reasoning": ("output_cost_per_reasoning_token", "output"),
    }
)  # fmt: skip
_TIERS: Mapping[str, str] = MappingProxyType({"": "", "batch": "_batches"})
_ABOVE = re.compile(r"input_cost_per_token(_above_(\d+)k_tokens)")
_PRICED = re.compile(r"cost.*token|token.*cost")


def read_map() -> dict[str, Any]:
    """The map as it is installed, by the names that clients use."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("litellm is not installed, and its price map with it: pip install stillroom again")
    shipped: dict[str, Any] = json.loads((Path(spec.submodule_search_locations[0]) / _FILE).read_text(encoding="utf-8"))
    return {**{_with_provider(name, entry): entry for name, entry in shipped.items()}, **shipped}


def source() -> str:
    """Which map that is."""
    return f"litellm {importlib.metadata.version('litellm')}"


def priced(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's entry says prices of tokens."""
    return {key: entry[key] for key in sorted(entry) if _PRICED.search(key) and isinstance(entry[key], int | float)}


def rates_of(entry: Mapping[str, Any], tier: str, prompt: int) -> Rates | None:
    """The prices for a call in this tier with so many tokens of prompt; None where there are none.

    Beyond a length some models cost more, for all tokens of the call; where the map does not say how much in this tier,
    nobody knows.
    """
    suffix = _TIERS.get(tier, f"_{tier}")
    above = _above(entry, prompt)
    found = {kind: _dollars(entry, f"{name}{above}{suffix}") for kind, name in _USUAL.items()}
    if above and found["output"] is None:  # Of some models only the prompt is dearer then.
        longer = any(f"{_USUAL['output']}{above}" in key for key in entry)
        found["output"] = None if longer else _dollars(entry, f"{_USUAL['output']}{suffix}")
    if found["input"] is None or found["output"] is None:
        return None
    for kind in ("cached_input", "cache_write", "cache_write_hour"):
        found[kind] = found[kind] or None  # A map's zero here says that nobody knows.
    special = {kind: _special(entry, name, like, suffix) for kind, (name, like) in _SPECIAL.items()}
    return {kind: usd for kind, usd in {**found, **special}.items() if usd is not None}


def model_sizes(default: Sizes) -> SizesOf:
    """How long a model's prompts and answers can be, from the same map; `default` for what it does not say."""
    known = {
        name: Sizes(
            _length(entry, "max_input_tokens", default.context), _length(entry, "max_output_tokens", default.answer)
        )
        for name, entry in read_map().items()
    }

    def sizes(model: str) -> Sizes:
        return next((known[name] for name in names(model) if name in known), default)

    return sizes


def names(model: str) -> tuple[str, ...]:
    """Under which names to look: a fine-tuned model `ft:base:org:name:id` costs what `ft:base` does."""
    return (model, ":".join(model.split(":")[:2])) if model.startswith("ft:") else (model,)


def _above(entry: Mapping[str, Any], prompt: int) -> str:
    """The part of the names that holds for a prompt as long as that."""
    found = [(int(k[2]) * 1000, k[1]) for k in map(_ABOVE.match, entry) if k]
    return max(((limit, part) for limit, part in found if prompt > limit), default=(0, ""))[1]


def _special(entry: Mapping[str, Any], name: str, like: str, suffix: str) -> Decimal | None:
    """In a tier for which nothing is said: as dear as the `like` tokens are there, if it is so in the usual tier."""
    usual, here = _dollars(entry, name), _dollars(entry, f"{name}{suffix}")
    if here is not None or usual is None or not suffix:
        return here
    return None if like and usual == _dollars(entry, _USUAL[like]) else Decimal("NaN")


def _dollars(entry: Mapping[str, Any], name: str) -> Decimal | None:
    usd = entry.get(name)
    return Decimal(repr(usd)) * _MILLION if isinstance(usd, int | float) else None


def _with_provider(name: str, entry: Mapping[str, Any]) -> str:
    """As clients name a model that is translated: `anthropic/claude-...` has its price under `claude-...`."""
    return name if "/" in name else f"{str(entry.get('litellm_provider')).removesuffix('_converse')}/{name}"


def _length(entry: Mapping[str, Any], name: str, default: int) -> int:
    length = entry.get(name)
    return length if type(length) is int and length > 0 else default
