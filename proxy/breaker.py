"""Owns when one deployment is left alone: a circuit that opens after failures, and rests the deployment asks for.

Must not know the clock, nor what counts as a failure. Times are in seconds, on any clock that does not go back.
"""

import random
from collections.abc import Callable
from typing import Literal

OPENS_AFTER = 5  # failures in a row
FIRST_PAUSE = 1.0  # of an open circuit; each probe doubles it. What is waited is drawn from its second half
LONGEST_PAUSE = 60.0  # of a circuit, and of a rest: no longer one is taken on a deployment's word

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Closed: requests may go. Open: none may until the pause is over, then one, the probe, whose fate decides.

    It refuses nothing: a request that has nowhere else to go is sent all the same, and its success closes the circuit.
    A probe that never comes back blocks nothing either: after the next pause there is another.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        """Closed; `draw` gives uniform numbers in [0, 1)."""
        self.state: State = "closed"
        self.failures = 0  # since the start
        self._in_a_row = 0
        self._draw = draw
        self._pause = FIRST_PAUSE
        self._paused_until = self._rests_until = 0.0

    @property
    def ready_at(self) -> float:
        """From when on a request may go."""
        return max(self._paused_until, self._rests_until)

    def asked(self, now: float) -> None:
        """A request goes out; the first one after an open circuit's pause is its probe."""
        if self.state != "closed" and now >= self.ready_at:
            self.state = "half_open"
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._wait(now)

    def succeeded(self) -> None:
        """The deployment gave an answer that is not its own failure."""
        self.state = "closed"
        self._in_a_row = 0
        self._pause = FIRST_PAUSE
        self._paused_until = 0.0

    def failed(self, now: float) -> None:
        """It gave none, or one that says that it failed."""
        self.failures += 1
        self._in_a_row += 1
        if self.state == "half_open" or (self.state == "closed" and self._in_a_row >= OPENS_AFTER):
            self.state = "open"
            self._wait(now)

    def rest(self, now: float, seconds: float) -> None:
        """It asked not to be asked for so long."""
        self._rests_until = max(self._rests_until, now + min(seconds, LONGEST_PAUSE))

    def _wait(self, now: float) -> None:
        self._paused_until = now + self._pause * (1 + self._draw()) / 2
