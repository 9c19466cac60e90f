"""Owns what commands share: the log they open, the policy they rewrite, how they print. Must not know any command."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distiller.settings import Settings
from proxy.errors import Unavailable

if TYPE_CHECKING:  # duckdb comes with it.
    from proxy.log import Log


def opened_log(settings: Settings, read_only: bool = False) -> "Log":
    """The log of this settings file; Unavailable where there is none yet."""
    from proxy.log import open_log

    if not settings.log.catalog and not (settings.folder / "log" / "catalog.sqlite").exists():
        raise Unavailable(
            f"there is no log under {settings.folder}: start `stillroom serve` first, or pass its --config"
        )
    return open_log(settings.log, settings.folder, read_only)


def republish(log: "Log", settings: Settings) -> None:
    """Rewrite the policy at once; what was served before and is still allowed keeps its place."""
    from router.lifecycle import publish
    from router.policy import load_policy

    served = {route.candidate: route.url for route in load_policy(settings.policy).routes.values()}
    for place in (settings.engine_state, *settings.more_engine_states, settings.small_state):
        if place.exists():
            state = json.loads(place.read_text())
            served |= dict.fromkeys(state["ready"], state["url"]) if state["state"] == "up" else {}
    publish(log, settings.router, served, settings.policy)


def show(arguments: argparse.Namespace, value: Any, table: Callable[[Any], None]) -> int:
    """Print `value`: as JSON for scripts, or by `table` for people; returns the exit code."""
    from distiller.terminal import as_json

    print(as_json(value)) if arguments.json else table(value)
    return 0


def sentence(text: str) -> Callable[[dict[str, Any]], None]:
    """A table that is one line of text with the value's fields put in."""
    return lambda value: print(text.format(**value))
