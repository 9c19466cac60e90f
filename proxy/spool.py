"""Owns the spool: append-only NDJSON segments on local disk, one writer per worker.

Must not know what a record means. A record is one `write` of one line, so a killed process leaves at most one torn
line at the end, and that line's exchange never got its last byte out. A segment grows as `*.open` under an exclusive
lock; closing renames it to `*.ndjson`. A segment whose lock is free has lost its writer: `adopt` repairs and closes
it, whoever comes first. What survives: a killed process, always; a power cut, every segment already closed.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from proxy.ids import ulid

OPEN, CLOSED, TORN = ".open", ".ndjson", ".torn"


class SpoolWriter:
    """Appends lines to the worker's own segment; not thread-safe, one per process."""

    def __init__(self, folder: Path, rotate_bytes: int, rotate_seconds: float) -> None:
        """Create the folder; the first segment is opened by the first record."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit, self._age = folder, rotate_bytes, rotate_seconds
        self._fd: int | None = None
        self._path = folder
        self._size, self._born = 0, 0.0

    def append(self, line: bytes) -> None:
        """Write one line whole or not at all; raises OSError (a full disk) and leaves the segment as it was."""
        fd = self._fd if self._fd is not None else self._begin()
        try:
            written = os.write(fd, line)
            if written != len(line):
                raise OSError(28, f"only {written} of {len(line)} bytes fitted")
        except OSError:
            os.ftruncate(fd, self._size)
            raise
        self._size += written
        if self._size >= self._limit:
            self.rotate()

    def rotate_if_old(self) -> None:
        """Close a segment older than the limit, so that quiet traffic reaches the log too."""
        if self._fd is not None and self._size and time.monotonic() - self._born >= self._age:
            self.rotate()

    def rotate(self) -> None:
        """Close the segment: synced, then renamed; a reader sees it whole or not at all."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            _finish(fd, self._path)
        finally:
            os.close(fd)

    def _begin(self) -> int:
        self._path = self._folder / f"{ulid()}{OPEN}"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._fd, self._size, self._born = fd, 0, time.monotonic()
        return fd


def closed_segments(folder: Path) -> list[Path]:
    """Segments ready for ingest, oldest first."""
    return sorted(folder.glob(f"*{CLOSED}"))


def adopt(folder: Path) -> Iterator[Path]:
    """Close the segments whose writer is dead; a torn last line goes to `*.torn` beside it. Yields what was closed."""
    for path in sorted(folder.glob(f"*{OPEN}")):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                # The writer may have closed it between our listing and the lock; then the name is gone.
                if path.exists():
                    _cut_torn_line(fd, path)
                    yield _finish(fd, path)
            finally:
                os.close(fd)


def _finish(fd: int, path: Path) -> Path:
    os.fsync(fd)
    closed = path.with_suffix(CLOSED)
    path.rename(closed)
    return closed


def _cut_torn_line(fd: int, path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        path.with_suffix(TORN).write_bytes(data[whole:])
        os.ftruncate(fd, whole)
