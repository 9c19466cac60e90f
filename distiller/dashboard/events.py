"""Owns `/ui/events`: one stream of server-sent events that names what has changed, for pages to load it again.

Must not know what pages show. However many listen, each thing is looked at once a second; nothing is sent but names.
Pages may show what was read a while ago, so whatever was named is named again when that while is over: what they show
in the end is always what there is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

LOOK_SECONDS = 1.0
ALIVE_SECONDS = 15.0  # between two signs of life: a client that has gone is noticed by them
MOST_CLIENTS = 32
_STEP_SECONDS = 0.2  # how soon the end is noticed

Marks = Mapping[str, Callable[[], object]]
"""By the name of its event, something that differs whenever that thing has changed; it may take its time.

None where that cannot be told just now: then nothing is said of it.
"""


class Changes:
    """What is followed for all who listen, on one event loop."""

    def __init__(self, marks: Marks, closing: Callable[[], bool], again: Sequence[float] = ()) -> None:
        """Nothing is looked at before somebody listens. `again` is after how many seconds a name is said once more."""
        self._marks, self._closing, self._again = marks, closing, again
        self._looking = asyncio.Lock()
        self._looked, self._seen = -LOOK_SECONDS, dict[str, object]()
        self.listening = 0

    async def stream(self) -> AsyncIterator[str]:
        """Events until the client goes or the process ends."""
        self.listening += 1
        try:
            one, said = _Listener(await self._now(), self._marks, self._again), time.monotonic()
            yield ": hello\n\n"
            while not self._closing():
                named = one.news(await self._now(), time.monotonic())
                if named or time.monotonic() - said >= ALIVE_SECONDS:
                    said = time.monotonic()
                    yield "".join(f"event: {name}\ndata:\n\n" for name in named) or ": still here\n\n"
                await asyncio.sleep(_STEP_SECONDS)
        finally:
            self.listening -= 1

    async def _now(self) -> Mapping[str, object]:
        async with self._looking:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                seen = await asyncio.to_thread(lambda: {name: mark() for name, mark in self._marks.items()})
                # A new one each time: who listens holds on to the one before.
                self._seen = self._seen | {name: mark for name, mark in seen.items() if mark is not None}
                self._looked = time.monotonic()
            return self._seen


class _Listener:
    """What one client knows, and when it is to hear a name again."""

    def __init__(self, known: Mapping[str, object], names: Mapping[str, object], again: Sequence[float]) -> None:
        """Its page may be as old as what others were shown before, so all names are said again to it, too."""
        now = time.monotonic()
        self._known, self._again = known, again
        self._due = {name: [now + seconds for seconds in again] for name in names}

    def news(self, seen: Mapping[str, object], now: float) -> list[str]:
        """The names to be said."""
        changed = [name for name, mark in seen.items() if mark != self._known.get(name)]
        self._known = seen
        due = [name for name, times in self._due.items() if name not in changed and any(at <= now for at in times)]
        for name in due:
            self._due[name] = [at for at in self._due[name] if at > now]
        for name in changed:
            self._due[name] = [now + seconds for seconds in self._again]
        return changed + due


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
