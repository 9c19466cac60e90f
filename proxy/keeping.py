"""Owns that an exchange is recorded exactly once, however it ends, and counted either way.

Must not know how it was answered. Whatever fails here, the spool or the making of a record, never fails the client.
Where making a record takes long, another process does it, and who is about to send the last byte waits for it
(`written`). Of what may collide then, privacy wins over completeness, and both over speed: what could not be redacted
is not kept, but counted.
"""

import asyncio
import dataclasses
import logging

from proxy.apart import Apart, NotMade
from proxy.counters import Counters
from proxy.exchange import Exchange, holds_logprobs
from proxy.redact import Redactor
from proxy.spool import SpoolFull, SpoolWriter

_log = logging.getLogger("stillroom.proxy")


class Keeper:
    """One per worker."""

    def __init__(self, spool: SpoolWriter, redactor: Redactor | Apart, counters: Counters) -> None:
        """Hold the collaborators."""
        self._spool, self._redactor, self._counters = spool, redactor, counters
        self._making: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Before the first exchange; whoever opens must close."""
        if isinstance(self._redactor, Apart):
            await self._redactor.start()

    async def close(self) -> None:
        """After the last exchange; all are recorded then."""
        if self._making:
            await asyncio.wait(self._making.values())
        if isinstance(self._redactor, Apart):
            self._redactor.stop()

    def keep(self, exchange: Exchange) -> None:
        """Record the exchange as it stands; only the first call for an exchange counts."""
        if exchange.kept:
            return
        exchange.kept = True
        exchange.latency_ms = exchange.elapsed_ms()
        if not exchange.capture:
            self._counters.opted_out.inc()
            return
        if isinstance(self._redactor, Apart):
            # A stream may go on.
            now = dataclasses.replace(exchange, response=bytes(exchange.response), logprobs=tuple(exchange.logprobs))
            making = asyncio.get_running_loop().create_task(self._keep_apart(exchange, now, self._redactor))
            self._making[exchange.id] = making
            making.add_done_callback(lambda _: self._making.pop(exchange.id))
            return
        try:
            line = exchange.line(self._redactor)
        except Exception:  # Whatever a body does to us, the client gets its answer, and nothing unredacted is kept.
            self._counters.dropped.labels("record").inc()
            _log.exception("exchange %s is not recorded: this is a defect", exchange.id)
            return
        self._write(exchange, line)

    async def written(self, exchange: Exchange) -> None:
        """Keep it, and return once it is recorded or never will be; at most apart.PATIENCE seconds later."""
        self.keep(exchange)
        making = self._making.get(exchange.id)
        if making is not None:
            await asyncio.wait([making])  # Whoever hangs up meanwhile ends the waiting, not the making.

    async def _keep_apart(self, exchange: Exchange, now: Exchange, apart: Apart) -> None:
        try:
            line = await apart.line(now)
        except NotMade as error:
            self._counters.dropped.labels("redaction").inc()
            _log.error("exchange %s is not recorded, as it could not be redacted: %s", exchange.id, error)
        else:
            self._write(exchange, line)

    def _write(self, exchange: Exchange, line: bytes) -> None:
        try:
            self._spool.append(line)
        except SpoolFull:
            self._counters.dropped.labels("disk").inc()
        except OSError:  # The spool has said so, once.
            self._counters.dropped.labels("spool").inc()
        else:
            exchange.recorded = True
            self._counters.captured.inc()
            if exchange.logprobs and holds_logprobs(line):
                self._counters.logprobs.labels("kept").inc()
