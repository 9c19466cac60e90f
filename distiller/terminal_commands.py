"""Owns the commands for who sits at a terminal: the live view, the check of a set-up, completion.

Must not look at anything itself: each asks a module and prints. Heavy imports wait inside the command.
"""

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
from typing import TYPE_CHECKING

from distiller.command_tools import show
from proxy.errors import BadInput

if TYPE_CHECKING:  # duckdb comes with it.
    from distiller.frame import Watcher

LEAST_SECONDS, MOST_SECONDS = 0.2, 3600.0


def top(arguments: argparse.Namespace) -> int:
    """Watch tasks, stages, spend, latency and what needs you, live."""
    from datetime import UTC, datetime

    from distiller.frame import Watcher
    from distiller.settings_file import load_settings

    if not LEAST_SECONDS <= arguments.seconds <= MOST_SECONDS:
        raise BadInput(f"--seconds must lie between {LEAST_SECONDS} and {MOST_SECONDS:.0f}, not {arguments.seconds}")
    watcher = Watcher(load_settings(arguments.config))
    with contextlib.closing(watcher):
        if not (arguments.once or arguments.json):
            return _live(watcher, arguments.seconds)
        frame = watcher.look(datetime.now(UTC))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(frame), default=str, indent=1))
    else:
        from distiller.top_text import View, page

        print(page(frame, View(), shutil.get_terminal_size((120, 40)).columns))
    return 1 if frame.no_log else 0


def _live(watcher: "Watcher", seconds: float) -> int:
    try:
        from distiller.top import Top
    except ImportError:
        raise BadInput("the live view needs an extra: pip install 'stillroom[top]', or --once for one look") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("the live view needs a terminal: --once prints one look, --json the same for scripts")
    Top(watcher.look, watcher.detail, seconds).run()
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Check a set-up and say what to fix."""
    from distiller.doctor import examine
    from distiller.finding import FIX, worst
    from distiller.findings_table import findings_table

    found = examine(arguments.config, arguments.online)
    show(arguments, found, findings_table)
    return 1 if worst(found) == FIX else 0


def completion(arguments: argparse.Namespace) -> int:
    """Print a script that lets a shell complete this command line."""
    from distiller.completion import completion_script

    print(completion_script(arguments.parser, arguments.shell))
    return 0
