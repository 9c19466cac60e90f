"""Owns how a scheduled distillation is run: in a process of its own, so that training can neither stall the controller
nor take it down. It ends with the controller, whatever ends that. Must not know what a distillation does.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distiller.runs import FAILED, INTERRUPTED, OUTCOMES, End, Run
from proxy.supervisor import ours, stop_child

_STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 15.0  # less than a controller has itself to end in
Command = Callable[[Run, str], Sequence[str]]
"""What is started for a run on a GPU, "" where none is named; its last line says how it ended, as `said` reads it."""


class Distillations:
    """Does runs one by one; any number at once."""

    def __init__(self, command: Command, grace: float = GRACE_SECONDS) -> None:
        """Nothing is started yet."""
        self._command, self._grace = command, grace

    async def __call__(self, run: Run, gpu: str) -> End:
        """The run's end; cancelled, the process is stopped first."""
        environment = {**os.environ, **ours(), **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        process = await asyncio.create_subprocess_exec(
            *self._command(run, gpu), env=environment, stdout=asyncio.subprocess.PIPE
        )
        try:
            printed, _ = await process.communicate()
        except asyncio.CancelledError:
            await stop_child(process, f"distillation of {run.task}", self._grace)
            raise
        return said(printed, process.returncode or 0)


def trainer(config: Path | None) -> Command:
    """The command of `stillroom trainer`, with the settings file in use."""
    more = ["--config", str(config)] if config else []

    def command(run: Run, gpu: str) -> Sequence[str]:
        until = ["--until", run.until] if run.until else []
        lane = ["--gpu", gpu] if gpu else []
        return [sys.executable, "-m", "stillroom", "trainer", *more, *until, *lane, "--", str(run.task)]

    return command


def said(printed: bytes, code: int) -> End:
    """The last line that was printed, where it says how it ended; else what the exit code says."""
    lines = printed.splitlines()
    try:
        found: Any = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    if isinstance(found, dict) and found.get("outcome") in OUTCOMES:
        return End(found["outcome"], str(found["detail"]), student=found.get("student"))
    if code in [*(-one for one in _STOPS), *(128 + one for one in _STOPS)]:
        return End(INTERRUPTED, "it was told to end; it goes on")
    if code < 0:
        return End(FAILED, f"it was killed by {signal.Signals(-code).name}")
    return End(FAILED, f"it ended with exit code {code}: what it said is among the controller's messages")
