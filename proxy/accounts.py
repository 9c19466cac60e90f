"""Owns the accounts that all workers share: one small file a key's name, under the home folder.

Must not know what is counted in them. An account is read and written whole, one page by one `write`, under the file's
lock: a process killed anywhere leaves the page as it was before a change or after it. A worker holds the lock of its
slot for as long as it lives, and the kernel lets go of it whichever way the worker dies; whoever would be refused for
a dead worker's reservations releases them first. What survives: killed processes and restarts, always; a power cut,
what the kernel had written by then.
"""

import contextlib
import fcntl
import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from proxy import limits as counting
from proxy.errors import Unavailable
from proxy.limits import NUMBERS, SLOTS, VERSION, Full, Limits, Need, Page, Reservation, Standing, Used

_PAGE_BYTES = 8 * NUMBERS


class Accounts:
    """One per process; a call waits for other processes' few microseconds at most. Not for use across a fork."""

    def __init__(self, folder: Path) -> None:
        """Take a slot, and release what its last owner had reserved; Unavailable where all are taken."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._slot, self._lock = _take_slot(folder)
        self._open: dict[str, tuple[int, Path]] = {}
        for file in folder.glob("*.account"):
            fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            try:
                with contextlib.suppress(Unavailable), _changing(fd, file) as page:
                    counting.release(page, self._slot)
            finally:
                os.close(fd)

    def reserve(self, name: str, limits: Limits, need: Need, now: float) -> Reservation | Full:
        """Room for one exchange, or which limit has none. Raises OSError, and Unavailable for a damaged account."""
        with self._account(name) as page:
            found = counting.full(page, limits, need, now)
            if found is not None and found.limit == "budget" and self._release_dead(page):
                found = counting.full(page, limits, need, now)
            return counting.reserve(page, self._slot, name, need, now) if found is None else found

    def settle(self, made: Reservation, used: Used, now: float) -> None:
        """Owed exactly once for each reservation. Raises as `reserve` does."""
        with self._account(made.name) as page:
            counting.settle(page, self._slot, made, used, now)

    def close(self) -> None:
        """Give the slot back; whatever it still has reserved goes with it."""
        for fd in (*(fd for fd, _ in self._open.values()), self._lock):
            os.close(fd)

    def _account(self, name: str) -> contextlib.AbstractContextManager[Page]:
        if name not in self._open:
            file = _file(self._folder, name)
            self._open[name] = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), file
        return _changing(*self._open[name])

    def _release_dead(self, page: Page) -> bool:
        """Whether there was anything of workers that are no more."""
        dead = [slot for slot in counting.reserving(page) if slot != self._slot and not _alive(self._folder, slot)]
        for slot in dead:
            counting.release(page, slot)
        return bool(dead)


def read_standing(folder: Path, name: str, now: float) -> Standing:
    """An account for people to see, less what the dead had reserved; Unavailable where it is damaged."""
    file = _file(folder, name)
    try:
        page = _parsed(file.read_bytes(), file)
    except FileNotFoundError:
        return Standing()
    for slot in counting.reserving(page):
        if not _alive(folder, slot):
            counting.release(page, slot)
    return counting.standing(page, now)


def _file(folder: Path, name: str) -> Path:
    """A name may be anything printable, and a file's name may not."""
    return folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.account"


@contextlib.contextmanager
def _changing(fd: int, file: Path) -> Iterator[Page]:
    """The page under its lock, written back when the block ends well."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        page = _parsed(os.pread(fd, _PAGE_BYTES, 0), file)
        yield page
        if os.pwrite(fd, page, 0) != _PAGE_BYTES:
            raise OSError(28, "the account was not written whole", str(file))
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _parsed(data: bytes, file: Path) -> "array[int]":
    if not data:  # Its maker is not back with the first page.
        return array("q", [VERSION, *[0] * (NUMBERS - 1)])
    if len(data) != _PAGE_BYTES or (page := array("q", data))[0] != VERSION:
        raise Unavailable(
            f"{file} is damaged or of another version: stop Stillroom and delete it; it counts from 0 then"
        )
    return page


def _take_slot(folder: Path) -> tuple[int, int]:
    for slot in range(SLOTS):
        lock = _locked(folder, slot)
        if lock is not None:
            return slot, lock
    raise Unavailable(f"{SLOTS} workers count under {folder} already: lower proxy.workers")


def _alive(folder: Path, slot: int) -> bool:
    lock = _locked(folder, slot)
    if lock is not None:
        os.close(lock)
    return lock is None


def _locked(folder: Path, slot: int) -> int | None:
    """The slot's lock, or None where somebody holds it."""
    fd = os.open(folder / f"{slot}.slot", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise
        return None
    return fd
