"""Owns the spool: append-only NDJSON segments on local disk, one writer per worker.

Must not know what a record means. A record is one `write` of one line, so a killed process leaves at most one torn
line at the end, and that line's exchange never got its last byte out. A segment grows as `*.open` under an exclusive
lock; closing renames it to `*.ndjson`. A segment whose lock is free has lost its writer: `adopt` closes it, whoever
comes first. What survives: a killed process, always; a power cut, every segment already closed.

Storage may fail in every way and come back: each line is then refused with an OSError, said once when it begins and
once when it is over. Below the high-water mark lines are refused before the disk is full, so that nothing else on it
fails for our sake.
"""

import contextlib
import errno
import fcntl
import logging
import os
import time
from pathlib import Path

from proxy.ids import ulid

OPEN, CLOSED = ".open", ".ndjson"
LOOK_SECONDS = 1.0  # between two looks at the disk; what a worker writes meanwhile is far less than the mark
_NAME = "[0-7]" + "[0-9A-HJKMNP-TV-Z]" * 25  # a ULID: files that others put into the folder are left alone
_log = logging.getLogger("stillroom.spool")


class SpoolFull(OSError):
    """The disk is down to the high-water mark: nothing was written."""


class Room:
    """Whether the disk that holds `folder` has more than `min_free` bytes left; a small disk, more than a tenth."""

    def __init__(self, folder: Path, min_free: int) -> None:
        """Look at nothing yet."""
        self._folder, self._min_free = folder, min_free
        self._next, self._short = 0.0, False

    def short(self) -> bool:
        """True from the mark on until an eighth more than it is free; looks at most every LOOK_SECONDS."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK_SECONDS
            self._short = self._look()
        return self._short

    def _look(self) -> bool:
        there = next(path for path in (self._folder.absolute(), *self._folder.absolute().parents) if path.exists())
        disk = os.statvfs(there)
        mark = min(self._min_free, disk.f_blocks * disk.f_frsize // 10)
        return disk.f_bavail * disk.f_frsize < (mark + mark // 8 if self._short else mark)


class SpoolWriter:
    """Appends lines to the worker's own segment; not thread-safe, one per process."""

    def __init__(self, folder: Path, rotate_bytes: int, rotate_seconds: float, min_free: int = 0) -> None:
        """Touch nothing yet: folder and segment are made by the first record, and again when they are gone."""
        self._folder, self._limit, self._age = folder, rotate_bytes, rotate_seconds
        self._room = Room(folder, min_free)
        self._fd: int | None = None
        self._path = folder
        self._size, self._born, self._seen = 0, 0.0, 0.0
        self._refused = 0

    def append(self, line: bytes) -> None:
        """Write one line whole or not at all; OSError (SpoolFull below the mark) leaves the segment as it was."""
        try:
            if self._room.short():
                raise SpoolFull(errno.ENOSPC, "the disk is down to spool.min_free_mb")
            self._write(line)
        except OSError as error:
            if not self._refused:
                _log.error("exchanges are not recorded, traffic goes on: %s: %s", self._folder, error.strerror or error)
            self._refused += 1
            raise
        if self._refused:
            _log.error("exchanges are recorded again; %d were not", self._refused)
            self._refused = 0
        if self._size >= self._limit:
            self.rotate()

    def rotate_if_old(self) -> None:
        """Close a segment older than the limit, so that quiet traffic reaches the log too."""
        if self._fd is not None and self._size and time.monotonic() - self._born >= self._age:
            self.rotate()

    def rotate(self) -> None:
        """Close the segment: synced, then renamed; what cannot be closed now is left for `adopt`, and said."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            _finish(fd, self._path)
        except FileNotFoundError:
            self._rescue(fd)
        except OSError as error:
            _log.error("segment %s could not be closed, it is tried again: %s", self._path.name, error.strerror)
        finally:
            os.close(fd)

    def _write(self, line: bytes) -> None:
        fd = self._segment()
        try:
            written = os.write(fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes fitted")
        except OSError:
            try:
                os.ftruncate(fd, self._size)
            except OSError:  # A torn line may be in it: with its lock free, what is whole is adopted.
                self._fd = None
                os.close(fd)
            raise
        self._size += written

    def _segment(self) -> int:
        """The segment to write to; a new one where there is none, or where somebody deleted it."""
        now = time.monotonic()
        if self._fd is not None and now - self._seen >= LOOK_SECONDS:
            self._seen = now
            if os.fstat(self._fd).st_nlink == 0:
                self.rotate()
        if self._fd is not None:
            return self._fd
        fd, self._path = _created(self._folder)
        self._fd, self._size, self._born, self._seen = fd, 0, now, now
        return fd

    def _rescue(self, fd: int) -> None:
        """Write the lines of a deleted segment again: as long as we hold it open, the kernel still has them."""
        try:
            fresh, path = _created(self._folder)
            with os.fdopen(fresh, "wb") as file:
                file.write(os.pread(fd, self._size, 0))
                file.flush()
                _finish(fresh, path)
        except OSError as error:
            _log.error("segment %s was deleted and its lines are lost: %s", self._path.name, error.strerror)
        else:
            _log.error("segment %s was deleted; its lines are now in %s", self._path.name, path.stem)


def closed_segments(folder: Path) -> list[Path]:
    """Segments ready for ingest, oldest first."""
    return _segments(folder, CLOSED)


def open_segments(folder: Path) -> list[Path]:
    """Segments that have a writer, or lost it; oldest first."""
    return _segments(folder, OPEN)


def adopt(path: Path) -> Path | None:
    """Close a segment whose writer is dead and return its new name; None where the writer lives or has closed it."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The writer may have closed it between our listing and the lock; then the name is gone.
            return _finish(fd, path) if path.exists() else None
        except BlockingIOError:
            return None
        finally:
            os.close(fd)
    return None


def _created(folder: Path) -> tuple[int, Path]:
    """A new, locked segment; the folder is made when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / f"{ulid()}{OPEN}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists():  # Before we had the lock, somebody could adopt it.
                return fd, path
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _segments(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.glob(_NAME + suffix) if path.is_file())


def _finish(fd: int, path: Path) -> Path:
    os.fsync(fd)
    closed = path.with_suffix(CLOSED)
    path.rename(closed)
    return closed
