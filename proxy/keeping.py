"""Owns that an exchange is recorded exactly once, however it ends, and counted either way.

Must not know how it was answered. Whatever fails here, the spool or the making of a record, never fails the client.
"""

import logging

from proxy.counters import Counters
from proxy.exchange import Exchange
from proxy.redact import Redactor
from proxy.spool import SpoolWriter

_log = logging.getLogger("stillroom.proxy")


class Keeper:
    """One per worker."""

    def __init__(self, spool: SpoolWriter, redactor: Redactor, counters: Counters) -> None:
        """Hold the collaborators."""
        self._spool, self._redactor, self._counters = spool, redactor, counters

    def keep(self, exchange: Exchange) -> None:
        """Record the exchange as it stands; only the first call for an exchange counts."""
        if exchange.kept:
            return
        exchange.kept = True
        exchange.latency_ms = exchange.elapsed_ms()
        if not exchange.capture:
            self._counters.opted_out.inc()
            return
        try:
            line = exchange.line(self._redactor)
        except Exception:  # Whatever a body does to us, the client gets its answer, and nothing unredacted is kept.
            self._counters.dropped.labels("record").inc()
            _log.exception("exchange %s is not recorded: this is a defect", exchange.id)
            return
        try:
            self._spool.append(line)
        except OSError as error:
            self._counters.dropped.labels("spool").inc()
            _log.error("exchange %s is not recorded: the spool failed: %s", exchange.id, error.strerror or error)
        else:
            self._counters.captured.inc()
