"""Owns that an exchange is recorded exactly once, however it ends, and counted either way.

Must not know how it was answered. Whatever fails here, the spool or the making of a record, never fails the client.
"""

import logging

from proxy.counters import Counters
from proxy.exchange import Exchange
from proxy.redact import Redactor
from proxy.spool import SpoolFull, SpoolWriter

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
        except SpoolFull:
            self._counters.dropped.labels("disk").inc()
        except OSError:  # The spool has said so, once.
            self._counters.dropped.labels("spool").inc()
        else:
            self._counters.captured.inc()
