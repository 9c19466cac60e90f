"""Owns the process in which a worker's records are made, where finding names in them would hold up all its clients.

Must not know who waits for a record, nor where it goes. One process for one worker, one exchange at a time; the event
loop only waits. Bodies go there by a socket, so that nothing unredacted is on a disk. A process that dies is replaced;
what it had in hand is not made, nor what waits longer than anybody should.
"""

import asyncio
import logging
import multiprocessing
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from proxy.errors import Unavailable
from proxy.exchange import Exchange
from proxy.names import load_people, require_names
from proxy.patterns import Redaction
from proxy.redact import Redactor

PATIENCE = 10.0
"""Seconds until a record that is not made by then is given up: the client waits for its last byte meanwhile."""


class NotMade(Exception):
    """There is no record; the message says nothing of what would be in it."""


class Apart:
    """One per worker."""

    def __init__(self, redaction: Redaction, patience: float = PATIENCE) -> None:
        """BadInput where what finds names is not installed; nothing is started yet."""
        require_names()
        self._redaction, self._patience = redaction, patience
        self._thread = ThreadPoolExecutor(1)  # It talks to the process, and nobody else does.
        self._process: SpawnProcess | None = None
        self._wire: Connection | None = None

    async def start(self) -> None:
        """Returns once the process can make records; Unavailable where it cannot be started."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, None)
        except OSError:
            self.stop()
            raise Unavailable("the process that finds names does not start: see its error above") from None

    async def line(self, exchange: Exchange) -> bytes:
        """The exchange's record, redacted; it must not change meanwhile. Raises NotMade."""
        asking = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, exchange)
        try:
            answer = await asyncio.wait_for(asking, self._patience)
        except TimeoutError:
            raise NotMade(f"it took over {self._patience:.0f} s") from None
        except OSError:
            raise NotMade("the process that finds names died") from None
        if isinstance(answer, str):
            raise NotMade(answer)
        return answer

    def stop(self) -> None:
        """End the process; what it has in hand is not made."""
        if self._process is not None:
            self._process.kill()  # Whoever waits for it goes on.
        self._thread.shutdown()
        self._end()

    def _ask(self, exchange: Exchange | None) -> bytes | str:
        """The record, or why there is none; OSError where the process died, then the next call starts another."""
        try:
            if self._wire is None:
                self._wire = self._begin()
            self._wire.send(exchange)
            answer: bytes | str = self._wire.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise ConnectionResetError from error
        return answer

    def _begin(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        wire, theirs = context.Pipe()
        self._process = context.Process(target=_make, args=(theirs, self._redaction), daemon=True)
        self._process.start()
        theirs.close()  # So that ours ends with the process.
        return wire

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None


def _make(wire: Connection, redaction: Redaction) -> None:
    """The process: a record for each exchange, until the worker is gone, which alone gets the signals to stop."""
    for by in (signal.SIGINT, signal.SIGTERM):
        signal.signal(by, signal.SIG_IGN)
    logging.disable()  # What the libraries say may hold what they were given.
    redactor = Redactor(redaction, load_people())
    try:
        while True:
            wire.send(_line(wire.recv(), redactor))
    except (EOFError, OSError):
        return


def _line(exchange: Exchange | None, redactor: Redactor) -> bytes | str:
    if exchange is None:  # Only to see whether it can be asked.
        return b""
    try:
        return exchange.line(redactor)
    except Exception as error:  # Whatever a body does to us; the error's own words may quote it.
        return type(error).__name__
