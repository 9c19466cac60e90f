"""Owns whether there is anything new to judge a candidate by, so that a look is paid for only where it can tell more.

Must not look itself; `router.controller` does. What changes without a trace in the log, such as a cool-down that ends,
a judge or a teacher that is back, is why a candidate is looked at again after a while all the same.
"""

import time
from collections.abc import Callable
from functools import partial

from proxy.feedback import FEEDBACK
from proxy.log import Latest, Log
from router.registry import Candidate

Newest = dict[str | None, tuple[int, str]]
"""For each task how many exchanges there are, and the last; None for feedback."""
PATIENCE = 30.0  # seconds after which a candidate is looked at though nothing is new
# An import brings exchanges that are older than the newest, so they are counted too. Feedback is of no task by itself.
_NEWEST = f"""
SELECT CASE WHEN path = '{FEEDBACK}' THEN NULL ELSE task END AS of, count(*), max(id) FROM exchanges
WHERE task IS NOT NULL OR path = '{FEEDBACK}' GROUP BY of
"""


class News:
    """What each candidate was last judged by, and when; for one controller."""

    def __init__(self, log: Log, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing was looked at yet; `patience` and `clock` are in seconds."""
        self._patience, self._clock = patience, clock
        self._latest = Latest(log, partial(_newest, log))
        self._newest: Newest = {}
        self._seen: dict[str, tuple[object, float]] = {}

    def refresh(self) -> None:
        """Read what there is by now, where the log has changed: one query for all tasks."""
        self._newest = self._latest.now()

    def any(self, candidate: Candidate, url: str) -> bool:
        """Whether its task, its stage or where it is served is not as at its last look, or that was long ago."""
        seen, at = self._seen.get(candidate.id, (None, 0.0))
        return seen != self._mark(candidate, url) or self._clock() - at >= self._patience

    def looked(self, candidate: Candidate, url: str, busy: bool) -> None:
        """Remember a look at what `refresh` had read; one that was `busy` left something to be done at once."""
        if busy:
            self._seen.pop(candidate.id, None)
        else:
            self._seen[candidate.id] = (self._mark(candidate, url), self._clock())

    def _mark(self, candidate: Candidate, url: str) -> object:
        return candidate, url, self._newest.get(candidate.task), self._newest.get(None)


def _newest(log: Log) -> Newest:
    return {task: (count, newest) for task, count, newest in log.query(_NEWEST)}
