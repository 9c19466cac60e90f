"""Owns that people are told of a thing once: what was told is in the log, so a restart tells nothing again.

A state that has ended is armed again: when it comes back it is told again. What a channel does not take is tried later,
while it is news. Must not know what is told, nor how. Nothing here is waited for by anybody.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import duckdb

from distiller.channels import Channel, PartlyTaken
from distiller.notice import LASTING, Notice
from proxy.errors import StillroomError, Unavailable
from proxy.ids import ulid
from proxy.log import Log
from proxy.waiting import pause

_log = logging.getLogger("stillroom.notifier")

LOOK_SECONDS = 30.0
SULK_SECONDS = 300.0  # that a channel is left alone after it took nothing
MOST = 20  # notices to a channel at a look: the others come with the next
SENT, CLEARED = "sent", "cleared"
Named = Mapping[tuple[str, str], Notice]
"""Notices by event and key."""
Look = Callable[[datetime], tuple[Named, Named]]
"""The moments and the states there are; called in a thread."""
_TOLD = """
SELECT event, key, outcome FROM notices WHERE channel = ?
QUALIFY row_number() OVER (PARTITION BY event, key ORDER BY id DESC) = 1
"""


class Notifier:
    """Runs until told to stop, on the loop; `log` is used there, `look` has a log of its own."""

    def __init__(self, log: Log, channels: Sequence[Channel], look: Look, now: Callable[[], datetime]) -> None:
        """Nothing is looked at yet."""
        self._log, self._channels, self._look, self._now = log, channels, look, now
        self._sulking: dict[str, float] = {}
        self._declined: set[tuple[str, str, str]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Look and tell; what is under way at `stop` is told by the next run."""
        if self._channels:
            telling, stopping = asyncio.ensure_future(self._forever()), asyncio.ensure_future(stop.wait())
            await asyncio.wait({telling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (telling, stopping):
                task.cancel()
            await asyncio.wait({telling, stopping})
            if not telling.cancelled() and (fault := telling.exception()):
                raise fault

    async def _forever(self) -> None:
        never = asyncio.Event()
        while True:
            try:
                await self.step()
            except (StillroomError, duckdb.Error, OSError) as error:
                _log.error("notices wait: %s", (str(error).splitlines() or [repr(error)])[0])
            await pause(never, LOOK_SECONDS)

    async def step(self) -> None:
        """One look, and what follows from it, on every channel at once."""
        found = await asyncio.to_thread(self._look, self._now())
        await asyncio.gather(*(self._tell(channel, *found) for channel in self._channels))

    async def _tell(self, channel: Channel, moments: Named, states: Named) -> None:
        told = {(event, key): outcome for event, key, outcome in self._log.query(_TOLD, [channel.name])}
        for name, outcome in told.items():
            if outcome == SENT and name[0] in LASTING and name not in states:
                self._note(channel, *name, CLEARED)
        new = [one for name, one in {**moments, **states}.items() if told.get(name) != SENT]
        new.sort(
            key=lambda one: (channel.name, one.event, one.key) in self._declined
        )  # One may be what it cannot take.
        for notice in new[:MOST]:
            if time.monotonic() < self._sulking.get(channel.name, 0.0):
                return
            try:
                await channel.send(notice)
            except PartlyTaken as error:
                _log.error("%s: a notice of %s did not reach everybody: %s", channel.name, notice.event, error)
            except Unavailable as error:
                self._sulking[channel.name] = time.monotonic() + SULK_SECONDS
                self._declined.add((channel.name, notice.event, notice.key))
                _log.error("%s did not take a notice of %s, and is tried again: %s", channel.name, notice.event, error)
                return
            self._note(channel, notice.event, notice.key, SENT)

    def _note(self, channel: Channel, event: str, key: str, outcome: str) -> None:
        values: list[Any] = [ulid(), self._now(), channel.name, event, key, outcome]
        self._log.transaction(lambda c: c.execute("INSERT INTO notices VALUES (?, ?, ?, ?, ?, ?)", values))
