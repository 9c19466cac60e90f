"""Owns opening the log when the controller starts, and remembering prices while it runs.

Must not know what the log is used for; traffic never waits for it.
"""

import asyncio
import logging
from datetime import UTC, datetime

import duckdb

from distiller.settings import Settings
from proxy.errors import BadInput, StillroomError
from proxy.log import Log
from proxy.repair import working_log
from proxy.waiting import pause
from router.price_history import record
from router.prices import PriceList

_log = logging.getLogger("stillroom.upkeep")

LOG_SECONDS = 10.0  # between two tries to open the log
LOOK_SECONDS = 30.0  # between two looks whether a model is used whose price is not remembered


async def opened(settings: Settings, stop: asyncio.Event) -> Log | None:
    """The log, repaired where it had to be, as soon as it can be used; None when `stop` comes first."""
    said = ""
    while not stop.is_set():
        try:
            return await asyncio.to_thread(working_log, settings.log, settings.folder, settings.spool_folder)
        except BadInput:
            raise
        except StillroomError as error:
            if str(error) != said:
                said = str(error)
                _log.error("%s; what is recorded waits in the spool, and this is tried again", said)
        await pause(stop, LOG_SECONDS)
    return None


async def keep_prices(log: Log, prices: PriceList, stop: asyncio.Event) -> None:
    """Remember what models in use cost by the price map, so that an upgrade of it cannot change the past."""
    while not stop.is_set():
        try:
            record(log, prices, datetime.now(UTC))
        except (StillroomError, duckdb.Error) as error:
            _log.error("prices were not remembered, trying again: %s", (str(error).splitlines() or [repr(error)])[0])
        await pause(stop, LOOK_SECONDS)
