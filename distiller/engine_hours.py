"""Owns the hours of the machine that serves students: charged as long as an engine runs, busy and idle told apart.

Each look counts the time since the look before as what the engines are at now: seen every few seconds for months, the
share of busy looks is the share of busy time. Where an engine does not say, its hours are charged as neither. Must not
know how engines are run.
"""

import re
import time
from collections.abc import Callable, Sequence

import aiohttp

from proxy.log import Log
from router.charges import Charge, append
from router.settings import MoneySettings
from router.totals import BUSY, IDLE

CHARGE_SECONDS = 60.0
UNKNOWN = "hour"
PATIENCE = 1.0  # seconds for an engine on this machine to say what it is at
# vLLM's metric, one line a model; the server of small students speaks the same.
_RUNNING = re.compile(r"^vllm:num_requests_running(?:\{[^}]*\})? ([0-9.eE+]+)$", re.MULTILINE)


class EngineHours:
    """Of one log; `urls` are those of the engines that answer now."""

    def __init__(
        self, log: Log, money: MoneySettings, urls: Callable[[], Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Nothing runs yet."""
        self._log, self._money, self._urls, self._clock = log, money, urls, clock
        self._seconds: dict[str, float] = {}
        self._seen: float | None = None
        self._charged = 0.0

    async def look(self) -> None:
        """To be called again and again while an engine runs."""
        unit = _unit([await running(url) for url in self._urls()])
        now = self._clock()
        if self._seen is None:
            self._charged = now
        else:
            self._seconds[unit] = self._seconds.get(unit, 0.0) + now - self._seen
        self._seen = now
        if now - self._charged >= CHARGE_SECONDS:
            self.charge()

    def charge(self) -> None:
        """What was not charged yet, such as before the end."""
        charges = [
            Charge("serving", seconds / 3600 * self._money.engine_hour, seconds / 3600, unit)
            for unit, seconds in sorted(self._seconds.items())
            if seconds
        ]
        if charges:
            self._log.transaction(lambda connection: append(connection, charges))
        self._seconds, self._charged = {}, self._clock()


async def running(url: str) -> float | None:
    """How many requests an engine is answering, None where it does not say."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session,
            session.get(f"{url}/metrics") as response,
        ):
            found = _RUNNING.findall(await response.text()) if response.status == 200 else []
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
    return sum(map(float, found)) if found else None


def _unit(requests: Sequence[float | None]) -> str:
    """One that is busy makes the machine busy; idle it is where all say so."""
    if any(requests):
        return BUSY
    return UNKNOWN if None in requests or not requests else IDLE
