"""Owns how many tokens of which kind a call used, and in which tier, read from the provider's own usage object.

Must not know what a token costs. The counts of the log say how many tokens there were; the usage says which of them
were read from a cache, written to one, heard, seen, thought or spoken. What it tells beside tokens, such as fees for
tools that the provider ran, has no price here: then nothing is known of the whole. Never raises for what a provider
sent, as a log is filled with it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

_WRITTEN = "cache_creation_input_tokens"
_USUAL_TIERS = (None, "", "auto", "default", "standard", "standard_only")
# What Anthropic answers at the usual price.
_USUAL = {"speed": (None, "standard"), "inference_geo": (None, "global", "not_available")}
_TOO_MANY = 1 << 63  # for a column of the log


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of one call of a model; `usage` is the provider's object as JSON, `at` when it was, None: now.

    `at_most` asks for a bound: of "text" each token of the answer is taken for its dearest kind, of "any" of the
    prompt too.
    """

    model: str | None
    prompt: int | None
    cached: int | None
    completion: int | None
    usage: str | None = None
    tier: str | None = None
    at: datetime | None = None
    at_most: Literal["", "text", "any"] = ""


# US dollars, or None for unpriced.
Price = Callable[[Call], float | None]


@dataclass(frozen=True, slots=True)
class Kinds:
    """Each token counts in one kind; `prompt` is their sum on the way in, `tier` empty for the usual one."""

    tier: str
    prompt: int
    input: int
    cached_input: int
    cache_write: int
    cache_write_hour: int
    audio_input: int
    cached_audio_input: int
    image_input: int
    output: int
    reasoning: int
    audio_output: int
    image_output: int


def kinds_of(call: Call) -> Kinds | None:
    """The tokens of a call by kind; None where a count is missing, makes no sense, or is not all there is to pay."""
    if call.prompt is None or call.completion is None:
        return None
    try:
        usage = json.loads(call.usage) if call.usage else {}
        if any(_fees(usage)) or not _at_usual_price(usage):
            return None
        tier = usage.get("service_tier") or call.tier
        found = _kinds(call, "" if tier in _USUAL_TIERS else str(tier), usage)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    counts = [getattr(found, name) for name in found.__slots__ if name != "tier"]
    return found if min(counts) >= 0 else None


def _at_usual_price(usage: Mapping[str, Any]) -> bool:
    """Only Anthropic's form has these; the names mean nothing in others."""
    ours = not usage.keys().isdisjoint((_WRITTEN, "input_tokens"))
    return not ours or all(usage.get(name) in usual for name, usual in _USUAL.items())


def _kinds(call: Call, tier: str, usage: Mapping[str, Any]) -> Kinds:
    prompt, completion = call.prompt or 0, call.completion or 0
    asked = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    told = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    written = _count(usage, _WRITTEN) or _count(asked, "cache_write_tokens") or _count(asked, "cache_creation_tokens")
    hour = min(_count(usage.get("cache_creation") or {}, "ephemeral_1h_input_tokens"), written)
    audio, image = _count(asked, "audio_tokens"), _count(asked, "image_tokens")
    cached = min(call.cached or 0, prompt - written)
    # Where nobody says which tokens came from the cache, text did: heard ones only where they do not fit otherwise.
    by_kind = asked.get("cached_tokens_details") or {}
    again = _count(by_kind, "audio_tokens") or max(0, cached + written + audio + image - prompt)
    thought, spoken, drawn = (_count(told, f"{name}_tokens") for name in ("reasoning", "audio", "image"))
    return Kinds(
        tier=tier, prompt=prompt, input=prompt - cached - written - (audio - again) - image,
        cached_input=cached - again, cache_write=written - hour, cache_write_hour=hour,
        audio_input=audio - again, cached_audio_input=again, image_input=image,
        output=completion - thought - spoken - drawn, reasoning=thought, audio_output=spoken, image_output=drawn,
    )  # fmt: skip


def _count(counts: Mapping[str, Any], name: str) -> int:
    count = counts.get(name)
    if count is None:
        return 0
    if type(count) is not int or not 0 <= count < _TOO_MANY:
        raise ValueError(f"{name} is no count")
    return count


def _fees(usage: Mapping[str, Any]) -> Iterable[Any]:
    """What is not among the tokens: requests to the provider's tools, and work of other models or for summaries."""
    yield from (usage.get("server_tool_use") or {}).values()
    yield usage.get("num_search_queries")
    yield from (one.get("type") != "message" for one in usage.get("iterations") or ())
