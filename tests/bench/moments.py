"""Owns when a process is killed: moments seen from outside, by its children's files, and where it was hit.

Must not know what comes of it. Nothing in the product helps: a phase is known by the first file it makes or moves.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from proxy.log import open_log
from proxy.settings import LogSettings
from tests.deployment import Deployment

LIMIT = 1 << 20  # bytes at which a segment is rotated here
_NEARLY = LIMIT - 30_000
T = TypeVar("T")
_POLL_SECONDS = 0.0003
_PATIENCE = 60.0  # seconds for a moment to come
# What runs beside the controller as a process of its own and is killed; its argument is the home folder.
_MAINTENANCE = """
import sys; from datetime import UTC, datetime; from pathlib import Path
from proxy.retention import maintain; from proxy.settings import LogSettings
maintain(LogSettings(), Path(sys.argv[1]), Path(sys.argv[1]) / 'spool', 1, datetime.now(UTC))
"""


class Missed(Exception):
    """The moment did not come, or was over before the kill."""


@dataclass(frozen=True, slots=True)
class State:
    """The spool's segments as a kill left them."""

    open_bytes: tuple[int, ...]
    closed: tuple[str, ...]
    ingested: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Where a process was hit; `restart`: seconds until its successor worked, None where nobody starts one."""

    point: str
    state: State
    restart: float | None


# Waits for its moment, kills and returns the id of the killed process and where it was hit.
Moment = Callable[[Deployment, Random], tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table; `rotate_seconds` is the age at which segments close."""

    name: str
    child: str
    moment: Moment
    rotate_seconds: float = 2.0


def all_kinds() -> list[Kind]:
    """The rows, in the order of the table."""
    return [
        Kind("a worker, at any time", "worker", _worker),
        Kind("the controller, at any time", "controller", _controller),
        Kind("the controller, during ingest", "controller", _ingest),
        Kind("a worker, while it rotates its segment", "worker", _rotation, 20.0),
        Kind("compaction and retention", "", _maintenance),
    ]


def home(deployment: Deployment) -> Path:
    """The folder with everything the deployment keeps."""
    return deployment.config.parent / "home"


def state(folder: Path) -> State:
    """What lies in the spool of this home folder."""
    sizes = []
    for segment in (folder / "spool").glob("*.open"):
        with suppress(FileNotFoundError):
            sizes.append(segment.stat().st_size)
    closed = tuple(segment.name for segment in (folder / "spool").glob("*.ndjson"))
    ingested = folder / "spool" / "ingested"
    return State(tuple(sizes), closed, len(list(ingested.iterdir())) if ingested.exists() else 0)


def logged(folder: Path, what: str) -> list[str]:
    """One text column of the log, such as `id FROM exchanges`."""
    log = open_log(LogSettings(), folder, read_only=True)
    try:
        return [str(row[0]) for row in log.query(f"SELECT {what}")]
    finally:
        log.close()


def _kill(pid: int) -> int:
    assert pid > 0
    os.kill(pid, signal.SIGKILL)
    return pid


def _worker(deployment: Deployment, rng: Random) -> tuple[int, str]:
    time.sleep(rng.uniform(0, 1.5))
    pid = _kill(rng.choice(deployment.children("worker")))
    return pid, "a segment open" if state(home(deployment)).open_bytes else "no segment open"


def _controller(deployment: Deployment, rng: Random) -> tuple[int, str]:
    time.sleep(rng.uniform(0, 1.5))
    pid = _kill(deployment.children("controller")[0])
    return pid, "segments waiting" if state(home(deployment)).closed else "nothing waiting"


def _ingest(deployment: Deployment, rng: Random) -> tuple[int, str]:
    """Rows are being written (their file appears), or segments moved away (the first one is gone)."""
    folder = home(deployment)
    pid = deployment.children("controller")[0]
    before, moved, seen = _files(folder), state(folder).ingested, 0.0
    if rng.random() < 0.6:
        _until(lambda: _files(folder) - before)
        seen = rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.2)))
    else:
        _until(lambda: state(folder).ingested > moved)
    time.sleep(seen)
    _kill(pid)
    time.sleep(0.02)  # It dies in the kernel's time; its successor takes ten times as long to come.
    left = state(folder)
    committed = set(left.closed) & set(logged(folder, "name FROM segments"))
    if committed:
        return pid, "committed, not all moved"
    return pid, "all moved" if left.ingested > moved else "written, not committed"


def _rotation(deployment: Deployment, rng: Random) -> tuple[int, str]:
    """A segment is nearly full, or full and not yet renamed."""
    folder, workers = home(deployment), deployment.children("worker")
    fewest, wait = rng.choice(((_NEARLY, rng.uniform(0, 0.02)), (LIMIT, 0.0)))
    owners: dict[Path, int | None] = {}

    def full() -> Path | None:
        for segment in (folder / "spool").glob("*.open"):
            if segment not in owners:  # Now, as there is no time for it later.
                owners[segment] = next((pid for pid in workers if _holds(pid, segment)), None)
            with suppress(FileNotFoundError):
                if owners[segment] and segment.stat().st_size >= fewest:
                    return segment
        return None

    segment = _until(full)
    time.sleep(wait)
    owner = _kill(owners[segment] or 0)
    time.sleep(0.02)
    if not segment.exists():
        return owner, "renamed"
    return owner, "full, not renamed" if segment.stat().st_size >= LIMIT else "nearly full"


def _maintenance(deployment: Deployment, rng: Random) -> tuple[int, str]:
    """The process has one of the log's files open, to write fewer of many."""
    folder = home(deployment)
    process = subprocess.Popen([sys.executable, "-c", _MAINTENANCE, str(folder)], stderr=subprocess.DEVNULL)

    def begun() -> bool:
        if process.poll() is not None:
            raise Missed
        return _holds(process.pid, folder / "log" / "data")

    try:
        _until(begun)
        time.sleep(rng.uniform(0, 0.2))
    finally:
        process.kill()
        ended = process.wait()
    if ended == 0:
        raise Missed
    return process.pid, "files open"


def _files(folder: Path) -> set[Path]:
    return set((folder / "log" / "data").rglob("*.parquet"))


def _holds(pid: int, path: Path) -> bool:
    """Whether the process has this file, or one under this folder, open."""
    with suppress(FileNotFoundError):  # It is over, or the file was closed meanwhile.
        return any(link.readlink().is_relative_to(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _until(check: Callable[[], T | None]) -> T:
    """Poll until there is something; Missed after a while."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := check()):
        if time.monotonic() > deadline:
            raise Missed
        time.sleep(_POLL_SECONDS)
    return found
