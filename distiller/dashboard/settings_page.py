"""Owns the page of settings: what is in effect, the keys, what is kept and how long, what was done by hand.

Settings are changed in the file, never here; keys are made and revoked by the functions behind `stillroom keys`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from distiller.dashboard.actions import recent
from distiller.dashboard.desk import Desk, form_of, tell
from distiller.dashboard.shown import shown
from distiller.settings import Settings
from proxy.accounts import read_standing
from proxy.errors import BadInput, StillroomError
from proxy.keys import Key, create_key, read_keys, revoke_key
from proxy.limits import Limits, Standing
from proxy.log import Log
from proxy.rollups import query

PAGE = "/ui/settings"
_MOST_ACTIONS = 50
_OLDEST = "SELECT min(hour), count(DISTINCT CAST(hour AS DATE)) FROM hours WHERE NOT dropped"


@dataclass(frozen=True, slots=True)
class KeyLine:
    """A key, and what its account says this month; None where the account cannot be read."""

    key: Key
    standing: Standing | None

    @property
    def used(self) -> float | None:
        """The share of its budget that is spent or reserved; None without a budget."""
        budget = self.key.limits.budget_usd
        if budget is None or self.standing is None:
            return None
        return (self.standing.spent + self.standing.reserved) / budget


def settings_router(desk: Desk) -> APIRouter:
    """The page and its actions."""
    router = APIRouter()

    @router.get("/settings")
    def settings(request: Request) -> Response:
        deeds = desk.readers.now("actions", lambda log: recent(log, _MOST_ACTIONS))
        oldest, days = desk.readers.now("oldest", _oldest)
        return desk.page(
            request, "settings.html", tables=shown(desk.settings), keys=key_lines(desk.settings), actions=deeds,
            oldest=oldest, days=days, config=desk.config, settings=desk.settings,
        )  # fmt: skip

    @router.post("/settings/keys/create")
    def create(request: Request) -> Response:
        form = form_of(request)
        name, models = form.get("name", "").strip(), tuple(form.get("models", "").replace(",", " ").split())
        limits = Limits(
            _number(form, "requests_per_minute"), _number(form, "tokens_per_minute"), _dollars(form, "budget")
        )
        tell(request, name, f"models {' '.join(models) or 'all'}; {_words(limits)}")
        secret = create_key(desk.settings.keys, name, models, limits, "no_capture" not in form)
        return desk.page(request, "key.html", name=name, secret=secret, asked=desk.settings.proxy.keys)

    @router.post("/settings/keys/revoke")
    def revoke(request: Request) -> Response:
        name = form_of(request).get("name", "")
        tell(request, name)
        revoke_key(desk.settings.keys, name)
        return desk.done(request, f"{PAGE}#keys", f"The key {name} is revoked: no worker takes it any more.")

    return router


def key_lines(settings: Settings) -> list[KeyLine]:
    """All keys, the good ones first, each group as it was made."""
    found = [KeyLine(key, _standing(settings, key)) for key in read_keys(settings.keys)]
    return sorted(found, key=lambda line: line.key.revoked is not None)


def _standing(settings: Settings, key: Key) -> Standing | None:
    try:
        return read_standing(settings.limits, key.name, time.time())
    except StillroomError:
        return None


def _oldest(log: Log) -> tuple[datetime | None, int]:
    """The hour of the oldest exchange that is kept, and on how many days there are some."""
    ((oldest, days),) = query(log, _OLDEST, {})
    return oldest and oldest.replace(tzinfo=UTC), int(days)


def _number(form: Mapping[str, str], name: str) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise BadInput(f"{name.replace('_', ' ')} must be a whole number, not {text[:40]!r}")
    return int(text)


def _dollars(form: Mapping[str, str], name: str) -> float | None:
    text = form.get(name, "").strip()
    try:
        return float(text) if text else None
    except ValueError:
        raise BadInput(f"a budget is US dollars, such as 50, not {text[:40]!r}") from None


def _words(limits: Limits) -> str:
    told = {
        "requests a minute": limits.requests_per_minute,
        "tokens a minute": limits.tokens_per_minute,
        "US dollars a month": limits.budget_usd,
    }
    return ", ".join(f"{value} {what}" for what, value in told.items() if value is not None) or "no limits"
