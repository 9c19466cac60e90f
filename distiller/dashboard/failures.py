"""Owns how often a login may fail, for each address and for all together. Must not know tokens."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

SECONDS = 60.0
EACH, ALL = 5, 50  # failures in so many seconds
_MOST = 1000  # addresses that are remembered


class Failures:
    """Used by all threads of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has failed yet."""
        self._clock, self._lock = clock, threading.Lock()
        self._of: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=ALL)

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0: now. Who has to wait is not looked at, right or wrong."""
        now = self._clock()
        with self._lock:
            return max(_left(self._of.get(address, deque()), EACH, now), _left(self._all, ALL, now))

    def failed(self, address: str) -> None:
        """One more."""
        now = self._clock()
        with self._lock:
            self._of.setdefault(address, deque(maxlen=EACH)).append(now)
            self._of.move_to_end(address)
            self._all.append(now)
            while len(self._of) > _MOST:
                self._of.popitem(last=False)


def _left(moments: "deque[float]", most: int, now: float) -> float:
    """Until the oldest of the last `most` is long enough ago."""
    return max(moments[0] + SECONDS - now, 0.0) if len(moments) == most else 0.0
