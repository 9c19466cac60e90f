"""Owns keeping child processes alive: start, restart with back-off, stop cleanly. Must not know what they do.

A child asks the kernel to be ended with its parent (`end_with_parent`), so a supervisor killed by force leaves
nothing behind that holds the port or the log.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.waiting import pause

_log = logging.getLogger("stillroom.supervisor")

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PARENT = "STILLROOM_SUPERVISOR"
STEADY_SECONDS = 30.0  # A child that lived this long is restarted at once.


@dataclass(frozen=True, slots=True)
class Child:
    """One process: its name in messages, its command, environment on top of ours, and file descriptors it inherits."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()


async def supervise(
    children: Sequence[Child],
    stop: asyncio.Event,
    grace: float = 30.0,
    buried: Callable[[int], None] = lambda pid: None,
) -> None:
    """Keep all children running until `stop`; then SIGTERM, and after `grace` seconds SIGKILL.

    `buried` is told the process id of each child that ended by itself.
    """
    await asyncio.gather(*(_keep(child, stop, grace, buried) for child in children))


async def _keep(child: Child, stop: asyncio.Event, grace: float, buried: Callable[[int], None]) -> None:
    delay = 0.2
    while not stop.is_set():
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *child.command,
            env={**os.environ, **child.environment, _PARENT: str(os.getpid())},
            pass_fds=tuple(child.descriptors),
        )
        if await _ended(process, stop):
            buried(process.pid)
            delay = 0.2 if time.monotonic() - started > STEADY_SECONDS else min(delay * 2, 10.0)
            _log.warning("%s ended (%s); starting it again in %.1f s", child.name, process.returncode, delay)
            await pause(stop, delay)
        else:
            await _stop(process, child.name, grace)


async def _ended(process: asyncio.subprocess.Process, stop: asyncio.Event) -> bool:
    """Wait for either; True when the process ended by itself."""
    ending, stopping = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    done, pending = await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return ending in done


async def _stop(process: asyncio.subprocess.Process, name: str, grace: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        _log.warning("%s did not stop within %.0f s and is killed", name, grace)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def end_with_parent() -> None:
    """Called by a child at its start: when the parent dies, by whatever cause, this process gets SIGTERM."""
    parent = int(os.environ.get(_PARENT, os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # It died before we asked, and the kernel will not say so again.
        os.kill(os.getpid(), signal.SIGTERM)
