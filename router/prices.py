"""Owns what a call costs: by the operator's prices, else by the price map; each as it stood when the call was made.

The one place that knows: whatever is charged, bounded or reserved is priced here. US dollars. None means unpriced,
which is never shown as zero: a model, a count or a kind of token without a price leaves the whole call without one.
Cached tokens cost what others do where nobody says otherwise, tokens written to a cache 1.25 times that, or twice for
an hour, as Anthropic asks; seen ones cost what read ones do, thought ones what written ones do. Heard and spoken tokens
have no price but their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any

from proxy.kinds import Call, Kinds, kinds_of
from router.price_map import Rates, names, priced, rates_of, read_map
from router.settings import MoneySettings, Price, TokenPrices

# From a tier and the tokens of a prompt to the prices that hold for it.
Find = Callable[[str, int], Rates | None]
_MILLION = 1_000_000
_WRITE, _WRITE_HOUR = Decimal("1.25"), Decimal(2)
_UNKNOWN = Decimal("NaN")
_IN = ("input", "cache_write", "cache_write_hour", "audio_input", "image_input")
_OUT = ("output", "reasoning", "audio_output", "image_output")


@dataclass(frozen=True, slots=True)
class Seen:
    """A model's prices by the map, in its own words, from `since` on; of a model's first ones, also before."""

    model: str
    since: datetime
    prices: Mapping[str, Any]


class PriceList:
    """What calls cost; `seen` is what the map said before, so that an upgrade of it never changes the past."""

    def __init__(self, money: MoneySettings, seen: Sequence[Seen] = ()) -> None:
        """Read the map; Unavailable where it is not installed."""
        self._own = {name: partial(_own, price) for name, price in money.prices.items()}
        self._changes: dict[str, list[tuple[datetime, Find]]] = {}
        for change in sorted(money.price_changes, key=lambda one: str(one.since)):
            assert change.since is not None  # The settings were checked.
            since = datetime.combine(change.since, time(), UTC)
            self._changes.setdefault(change.model, []).append((since, partial(_own, change)))
        self._map = read_map()
        self._seen: dict[str, list[Seen]] = {}
        self.used: set[str] = set()
        """Models that were priced by the map."""
        self.remember(seen)

    def __call__(self, call: Call) -> float | None:
        """US dollars, exact to the last digit that a float has; None where the model or its tokens are not known."""
        kinds = kinds_of(call)
        find = self._find(call.model or "", call.at or datetime.now(UTC)) if kinds else None
        rates = find(kinds.tier, kinds.prompt) if kinds and find else None
        if kinds is None or rates is None:
            return None
        usd = _bound(rates, kinds, call.at_most == "any") if call.at_most else _usd(rates, kinds)
        return float(usd / _MILLION) if usd.is_finite() else None

    def __len__(self) -> int:
        """How many models have a price."""
        mapped = (name for name, entry in self._map.items() if rates_of(entry, "", 0))
        return len({*mapped, *self._own, *self._changes})

    def reread(self) -> None:
        """Look at the map again, which may have been upgraded under a process that runs."""
        self._map = read_map()

    def remember(self, seen: Sequence[Seen]) -> None:
        """What the map said, in the order of time."""
        for one in seen:
            self._seen.setdefault(one.model, []).append(one)

    def unseen(self) -> dict[str, dict[str, Any]]:
        """What the map says now otherwise than it was last seen to, of models that are or were in use."""
        said = {name: priced(self._map[name]) for name in {*self.used, *self._seen} if name in self._map}
        return {
            name: prices
            for name, prices in said.items()
            if name not in self._seen or dict(self._seen[name][-1].prices) != prices
        }

    def _find(self, model: str, at: datetime) -> Find | None:
        return next((found for name in names(model) if (found := self._named(name, at))), None)

    def _named(self, name: str, at: datetime) -> Find | None:
        dated = [found for since, found in self._changes.get(name, ()) if since <= at]
        if dated or name in self._own:
            return dated[-1] if dated else self._own[name]
        history = self._seen.get(name, [])
        if name not in self._map and not history:
            return None
        self.used.add(name)
        then = next((one.prices for one in reversed(history) if one.since <= at), None)
        return partial(rates_of, then or (history[0].prices if history else self._map[name]))


def _own(price: Price, tier: str, prompt: int) -> Rates | None:
    """Another tier than the usual one has its own prices, or none."""
    said: TokenPrices | None = price.tiers.get(tier) if tier else price
    if said is None:
        return None
    named = {one.name: getattr(said, one.name) for one in fields(TokenPrices)}
    return {kind: Decimal(repr(usd)) for kind, usd in named.items() if usd is not None}


def _whole(rates: Rates) -> dict[str, Decimal]:
    """With what is known of kinds that nothing is said of."""
    text, written = rates["input"], rates["output"]
    usual = {
        "cached_input": text, "cache_write": _WRITE * text, "cache_write_hour": _WRITE_HOUR * text,
        "image_input": text, "reasoning": written, "audio_input": _UNKNOWN, "audio_output": _UNKNOWN,
        "image_output": _UNKNOWN, "cached_audio_input": rates.get("audio_input", _UNKNOWN),
    }  # fmt: skip
    return {**usual, **rates}


def _usd(rates: Rates, kinds: Kinds) -> Decimal:
    priced_kinds = _whole(rates).items()
    return sum((count * usd for kind, usd in priced_kinds if (count := getattr(kinds, kind))), Decimal(0))


def _bound(rates: Rates, kinds: Kinds, any_kind: bool) -> Decimal:
    """With each token taken for its dearest kind, as far as kinds are told apart."""
    dearest = max(rates[kind] for kind in (_IN if any_kind else _IN[:3]) if kind in rates)
    return kinds.prompt * dearest + kinds.output * max(rates[kind] for kind in _OUT if kind in rates)
