"""Owns following one small file that another process replaces whole. Must not know what is in it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Watched(Generic[T]):
    """Keeps what `load` makes of the file's newest state in memory; `load` must not raise, whatever the file holds."""

    def __init__(self, path: Path, load: Callable[[Path], T], seconds: float = 0.5) -> None:
        """Load once; `watching` then looks every `seconds`."""
        self._path, self._load, self._seconds = path, load, seconds
        self._stamp = self._look()
        self.value = load(path)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Reload on change for as long as the context is open."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp, self.value = stamp, self._load(self._path)

    def _look(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:  # Missing or unreadable is a state too; `load` says what it means.
            return None
        return stat.st_mtime_ns, stat.st_ino
