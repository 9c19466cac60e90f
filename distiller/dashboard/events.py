"""Owns `/ui/events`: one stream of server-sent events that names what has changed, for pages to load it again.

Must not know what pages show. However many listen, each thing is looked at once a second; nothing is sent but names.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

LOOK_SECONDS = 1.0
ALIVE_SECONDS = 15.0  # between two signs of life: a client that has gone is noticed by them
MOST_CLIENTS = 32
_STEP_SECONDS = 0.2  # how soon the end is noticed

Marks = Mapping[str, Callable[[], object]]
"""By the name of its event, something that differs whenever that thing has changed; it may take its time."""


class Changes:
    """What is followed for all who listen, on one event loop."""

    def __init__(self, marks: Marks, closing: Callable[[], bool]) -> None:
        """Nothing is looked at before somebody listens."""
        self._marks, self._closing = marks, closing
        self._looking = asyncio.Lock()
        self._looked, self._seen = -LOOK_SECONDS, dict[str, object]()
        self.listening = 0

    async def stream(self) -> AsyncIterator[str]:
        """Events until the client goes or the process ends."""
        self.listening += 1
        try:
            known, said = await self._now(), time.monotonic()
            yield ": hello\n\n"
            while not self._closing():
                seen = await self._now()
                changed = [name for name, mark in seen.items() if mark != known.get(name)]
                if changed or time.monotonic() - said >= ALIVE_SECONDS:
                    known, said = seen, time.monotonic()
                    yield "".join(f"event: {name}\ndata:\n\n" for name in changed) or ": still here\n\n"
                await asyncio.sleep(_STEP_SECONDS)
        finally:
            self.listening -= 1

    async def _now(self) -> dict[str, object]:
        async with self._looking:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._seen = await asyncio.to_thread(lambda: {name: mark() for name, mark in self._marks.items()})
                self._looked = time.monotonic()
            return self._seen


def events_router(changes: Changes) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get("/events")
    async def events() -> Response:
        if changes.listening >= MOST_CLIENTS:
            return PlainTextResponse("too many pages are open: this one does not follow\n", 503, {"retry-after": "30"})
        headers = {"x-accel-buffering": "no"}  # A proxy in between passes each event on at once.
        return StreamingResponse(changes.stream(), media_type="text/event-stream", headers=headers)

    return router
