"""Owns how pages read the log: connections of their own that only read, and answers kept until the log changes.

Must not know what is read. The controller's connection is never used here, so no page can delay it.
"""

import contextlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any, TypeVar

import duckdb

from distiller.command_tools import opened_log
from distiller.settings import Settings
from proxy.errors import Unavailable
from proxy.log import Log

T = TypeVar("T")

CONNECTIONS = 4  # pages that read at once; the others wait
WAIT_SECONDS = 20.0  # and no longer, as each of them holds a thread, of which scrapes need one too
BUSY = "too many pages read the log just now: load this one again in a moment"
FRESH_SECONDS = 15.0  # what takes a moment may be so old
LONG_SECONDS = 60.0  # and what takes longer
_MOST_KEPT = 256


class Readers:
    """For all threads of one process; connections are opened when first needed."""

    def __init__(self, settings: Settings, opened: Callable[[Settings], Log] | None = None) -> None:
        """Nothing is opened yet: there may be no log. `opened` opens a connection; without it, one that only reads."""
        self._settings, self._opened = settings, opened or partial(opened_log, read_only=True)
        self._idle: queue.LifoQueue[Log | None] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(None)
        self._kept: OrderedDict[Hashable, tuple[Hashable, float, Any]] = OrderedDict()
        self._turns: dict[Hashable, threading.Lock] = {}
        self._lock, self._forgotten = threading.Lock(), 0

    @contextlib.contextmanager
    def log(self) -> Iterator[Log]:
        """A connection for one thread for a while; Unavailable where there is no log, or too many read it."""
        try:
            held = self._idle.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise Unavailable(BUSY) from None
        try:
            held = held or self._opened(self._settings)
            yield held
        except (duckdb.Error, Unavailable):  # The next one starts anew, with the log as it is then.
            if held is not None:
                held.close()
            held = None
            raise
        finally:
            self._idle.put(held)

    def now(
        self,
        key: Hashable,
        read: Callable[[Log], T],
        seconds: float = 0.0,
        mark: Callable[[Log], Hashable] = Log.snapshot,
    ) -> T:
        """What `read` makes of the log, the same for this `key` until the log changes; read once for all who ask.

        What takes long may be kept for so many `seconds` after a change, but for one that was made from here; or it has
        a `mark` of its own, which differs when there is something new for it.
        """
        with self._turn(key), self.log() as log:
            now = mark(log)
            with self._lock:
                kept, forgotten = self._kept.get(key), self._forgotten
            if kept is not None and (kept[0] == now or time.monotonic() - kept[1] < seconds):
                value: T = kept[2]
                return value
            value = read(log)
            with self._lock:
                if forgotten == self._forgotten:  # Or it may be of before what was done here in the meantime.
                    self._keep(key, (now, time.monotonic(), value))
            return value

    def forget(self) -> None:
        """Read everything again: something was done from here, and has to be seen at once."""
        with self._lock:
            self._kept.clear()
            self._turns.clear()
            self._forgotten += 1

    def close(self) -> None:
        """Close what is open, as soon as nobody uses it."""
        for _ in range(CONNECTIONS):
            held = self._idle.get()
            if held is not None:
                held.close()

    def _keep(self, key: Hashable, value: tuple[Hashable, float, Any]) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        while len(self._kept) > _MOST_KEPT:
            forgotten, _ = self._kept.popitem(last=False)
            self._turns.pop(forgotten, None)

    @contextlib.contextmanager
    def _turn(self, key: Hashable) -> Iterator[None]:
        """One after the other for the same key; what is not kept in the end leaves nothing behind."""
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        if not turn.acquire(timeout=WAIT_SECONDS):
            raise Unavailable(BUSY)
        try:
            yield
        finally:
            with self._lock:
                if key not in self._kept and self._turns.get(key) is turn:
                    del self._turns[key]
            turn.release()
