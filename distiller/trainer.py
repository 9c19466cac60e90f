"""Owns the process in which a scheduled distillation runs: its place on the machine, and how it says what became of it.

One at a time has the place of a GPU: who is still ending there is waited for. Must not know who started it, or why.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distiller.runs import FAILED, OK, REFUSED, End
from distiller.settings import Settings
from proxy.errors import BadInput, Refused, StillroomError, Unavailable
from proxy.log import Log

_log = logging.getLogger("stillroom.trainer")

POLITE = 10  # added to its niceness: clients come first
_PATIENCE = 60.0
_BREATH = 0.2


def settle_in() -> None:
    """Behind all who serve clients; and told to end, clean up first."""
    os.nice(POLITE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def distill_once(log: Log, settings: Settings, task: str, until: str) -> End:
    """Distill, from exchanges up to `until` ("": all); what is refused or failed is said, a bug is raised."""
    from distiller.distill import distill

    try:
        done = distill(log, settings, task, lambda *_: None, until)
    except (BadInput, Refused) as error:
        return End(REFUSED, _kept(error))
    except StillroomError as error:
        return End(FAILED, _kept(error))
    return End(OK, _in_words(done), student=done.bundle.id)


def _kept(error: StillroomError) -> str:
    """An error as the log may keep it: what others raised may quote what was recorded, and no erasure would find it."""
    if error.__cause__ is None:
        return str(error)
    _log.error("%s", error)
    return f"{type(error.__cause__).__name__}: what it said is among the controller's messages"


def _in_words(done: Any) -> str:
    sure = f"would answer {done.threshold.coverage:.0%} of the holdout" if done.threshold else "no threshold was found"
    lost = done.duel is not None and done.duel.lost
    state = "no candidate: worse than the one before" if lost else "a candidate" if done.fresh else "known already"
    return f"{done.kind}, agreement {done.holdout.student:.3f} on the holdout, {sure}; {state}"


def sweep(students: Path) -> None:
    """Remove what distillations that were killed have left half made."""
    for scratch in students.glob(".making-*-*"):
        _, pid, _ = scratch.name.split("-", 2)
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def training_place(settings: Settings, task: str, gpu: str | None = None) -> Iterator[None]:
    """A task, and a GPU (the first that is set), for oneself: the schedule's trainings and people's do not meet."""
    named = next(iter(settings.schedule.gpus), "") if gpu is None else gpu
    with place(settings.folder, f"task {task}"), place(settings.folder, f"gpu {named}"):
        yield


@contextlib.contextmanager
def place(home: Path, name: str) -> Iterator[None]:
    """Have a GPU, or a task, for oneself; Unavailable where another still has it after a minute."""
    folder = home / "state" / "training"
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _PATIENCE
    with (folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable("another distillation is still running there: try again later") from None
            time.sleep(_BREATH)
        yield
