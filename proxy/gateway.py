"""Owns admission by virtual key: whether it is good, for this model, and within its limits.

Must not know how limits are counted nor what things cost. Where nothing is limited nothing is parsed. Where counting
fails, rates are let go and money is not: it must not be spent unseen.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from proxy.accounts import Accounts
from proxy.admitting import Admitted, Denied
from proxy.choosing import Choose
from proxy.costs import Bound, SizesOf, bound_of, fields_of, rate_need, used
from proxy.derive import PAID, Price
from proxy.errors import Refused, StillroomError, envelope
from proxy.exchange import Exchange
from proxy.feedback import PATHS as FEEDBACK_PATHS
from proxy.headers import Headers
from proxy.keys import Key, KeyRing
from proxy.limits import NO_LIMITS, Full, Need, Reservation

_MODELS = "/v1/models"  # Free, and clients ask for it before they name a model.
_SOON = 1.0  # seconds; when what others have reserved is given back, nobody can know
_log = logging.getLogger("stillroom.gateway")


@dataclass(frozen=True, slots=True)
class Tariff:
    """What calls cost, and how long they can be; `choose` may name another model than a client did."""

    price: Price
    sizes_of: SizesOf
    choose: Choose | None = None


class Gateway:
    """The `Admit` of one worker; `ring` gives the keys as they are now, `clock` the time in seconds."""

    def __init__(
        self, ring: Callable[[], KeyRing], accounts: Accounts, tariff: Tariff, clock: Callable[[], float] = time.time
    ) -> None:
        """Hold the collaborators."""
        self._ring, self._accounts, self._tariff, self._clock = ring, accounts, tariff, clock

    def __call__(self, path: str, headers: Headers, body: bytes) -> Admitted | Denied:
        """Admit, and reserve what is limited; or say what is in the way."""
        key = self._ring().find(headers)
        if key is None:
            text = "the key is not known here, or was revoked: `stillroom keys create NAME` makes one"
            return _denied("key", 401, text, "invalid_request_error", "invalid_api_key")
        if path in FEEDBACK_PATHS:  # No model is asked, and nothing is paid.
            return Admitted(key.name, key.capture)
        if path == _MODELS:
            key = replace(key, models=(), limits=replace(key.limits, tokens_per_minute=None, budget_usd=None))
        if not key.models and key.limits == NO_LIMITS:
            return Admitted(key.name, key.capture)
        limits = key.limits
        read = key.models or limits.tokens_per_minute is not None or limits.budget_usd is not None
        fields = fields_of(body) if read else None
        if key.models and not _named(fields) <= set(key.models):
            text = f"the key {key.name!r} is not for the model asked for, but for {', '.join(key.models)}"
            return _denied("model", 403, text, "invalid_request_error", "model_not_allowed")
        if limits.budget_usd is not None and self._tariff.choose is not None:  # What is paid for is what is asked.
            chosen = self._tariff.choose(path, headers, body)
            fields, body = (fields_of(chosen.body), chosen.body) if chosen is not None else (fields, body)
        return self._within_limits(key, path.rstrip("/"), fields, body)

    def _within_limits(self, key: Key, path: str, fields: Mapping[str, Any] | None, body: bytes) -> Admitted | Denied:
        if key.limits == NO_LIMITS:
            return Admitted(key.name, key.capture)
        try:
            bound, need = self._needed(key, path, fields, len(body))
            found = self._accounts.reserve(key.name, key.limits, need, self._clock())
        except Refused as refused:
            return _denied("budget", 403, str(refused), "invalid_request_error", "model_not_allowed")
        except (OSError, StillroomError) as error:
            _log.error("the limits of %r are not counted: %s", key.name, error)
            if key.limits.budget_usd is None:
                return Admitted(key.name, key.capture)
            text = "the key's budget cannot be read now, and is not overdrawn unseen: see Stillroom's log"
            return _denied("budget", 503, text, "server_error", "budget_unavailable", _SOON)
        if isinstance(found, Full):
            return _full(key, found)
        owed = need != Need()
        return Admitted(key.name, key.capture, functools.partial(self._settle, found, bound, need) if owed else None)

    def _needed(self, key: Key, path: str, fields: Mapping[str, Any] | None, size: int) -> tuple[Bound | None, Need]:
        """What is reserved; Refused where the key has a budget and the cost cannot be known."""
        limits = key.limits
        if limits.budget_usd is not None:
            if path not in PAID:
                raise Refused(f"what {path} costs is not known: a key with a budget cannot ask for it")
            bound = bound_of(path, fields, size, self._tariff.price, self._tariff.sizes_of)
            return bound, bound.need
        if limits.tokens_per_minute is not None and path in PAID:
            return None, rate_need(path, fields, size)
        return None, Need()

    def _settle(self, made: Reservation, bound: Bound | None, need: Need, exchange: Exchange) -> None:
        try:
            self._accounts.settle(made, used(exchange, bound, need, self._tariff.price), self._clock())
        except (OSError, StillroomError) as error:  # What was reserved stays so until this worker ends.
            _log.error("exchange %s is not settled: %s", exchange.id, error)


def _named(fields: Mapping[str, Any] | None) -> set[Any]:
    """Every model a request lets the teacher choose; None stands for what cannot be read."""
    if fields is None:
        return {None}
    others = fields.get("models", [])
    named = [fields.get("model"), *(others if isinstance(others, list) else [None])]
    return {name if isinstance(name, str) else None for name in named}


def _full(key: Key, found: Full) -> Denied:
    limits = key.limits
    if found.limit == "budget":
        why = f"its budget of ${limits.budget_usd:,.2f} for this month is spent"
        if found.wait is None:
            why = f"what is left of its budget of ${limits.budget_usd:,.2f} is reserved by requests under way"
        kind = code = "insufficient_quota"
    else:
        most = limits.requests_per_minute if found.limit == "requests" else limits.tokens_per_minute
        why, kind, code = f"it reached its limit of {most} {found.limit} a minute", found.limit, "rate_limit_exceeded"
    wait = _SOON if found.wait is None else found.wait
    text = f"the key {key.name!r} has to wait {math.ceil(wait)} s: {why}"
    return _denied(found.limit, 429, text, kind, code, wait)


def _denied(reason: str, status: int, text: str, kind: str, code: str, wait: float | None = None) -> Denied:
    headers = [(b"content-type", b"application/json")]
    if wait is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(wait))).encode()))
    return Denied(status, envelope(text, kind, code), headers, reason)
