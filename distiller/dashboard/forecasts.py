"""Owns forecasts for the dashboard: `stillroom forecast`, run beside this process when somebody asks for one.

It reads thousands of exchanges and fits models, which must not slow down the pages or the controller; one runs at a
time, and what came of the last of each task is kept until there is a newer one. Must not know what a forecast says.
"""

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxy.errors import Unavailable

LONGEST = 180.0  # seconds
_KEPT = 100


@dataclass(frozen=True, slots=True)
class Made:
    """What the command printed as JSON, and when."""

    at: datetime
    said: Mapping[str, Any]


class Forecasts:
    """For all threads of one process."""

    def __init__(self, config: Path | None) -> None:
        """`config` is the settings file that the command gets, too."""
        self._config = ["--config", str(config)] if config else []
        self._made: OrderedDict[str, Made] = OrderedDict()
        self._running = threading.Lock()

    def known(self, task: str) -> Made | None:
        """The last one of the task, if there is one."""
        return self._made.get(task)

    def make(self, task: str) -> Made:
        """A fresh one; Unavailable where another one is being made, and where it fails, with what the command said."""
        if not self._running.acquire(blocking=False):
            raise Unavailable("another forecast is being made: try again in a minute")
        try:
            made = Made(datetime.now(UTC), self._said(task))
            self._made[task] = made
            self._made.move_to_end(task)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
            return made
        finally:
            self._running.release()

    def _said(self, task: str) -> Mapping[str, Any]:
        command = [sys.executable, "-m", "stillroom", "forecast", *self._config, "--json", "--", task]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"the forecast took longer than {LONGEST:g} s: run `stillroom forecast {task}`") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
            raise Unavailable(f"no forecast: {last[0].removeprefix('stillroom: ')}")
        said: Mapping[str, Any] = json.loads(done.stdout)
        return said
