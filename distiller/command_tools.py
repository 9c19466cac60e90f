"""Owns what commands share: the log they open, how they print. Must not know any command."""

import argparse
import os
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


def show(arguments: argparse.Namespace, value: Any, table: Callable[[Any], None]) -> int:
    """Print `value`: as JSON for scripts, or by `table` for people; returns the exit code."""
    from distiller.terminal import as_json

    print(as_json(value)) if arguments.json else table(value)
    return 0


def sentence(text: str) -> Callable[[dict[str, Any]], None]:
    """A table that is one line of text with the value's fields put in."""
    return lambda value: print(text.format(**value))


def wait_politely() -> None:
    """Before torch is loaded: waiting threads must not spin, or two busy processes on few cores stall each other."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # Libraries' own bars would break into ours.
