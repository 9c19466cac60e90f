"""Owns what keeps the log well while the controller runs: opening it, copies of its catalog, maintenance.

Must not know what the log is used for; traffic never waits for any of this.
"""

import asyncio
import logging
import math
import time
from datetime import datetime

import duckdb

from distiller.erase import redo
from distiller.settings import Settings
from proxy.backup import back_up
from proxy.errors import BadInput, StillroomError
from proxy.log import Log, catalog_file
from proxy.repair import working_log
from proxy.retention import maintain
from proxy.spool import Room
from proxy.waiting import pause

_log = logging.getLogger("stillroom.upkeep")

LOG_SECONDS = 10.0  # between two tries to open the log
BACKUP_SECONDS = 3600.0
LOOK_SECONDS = 30.0  # between two looks whether there is something new to back up


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


async def keep_backups(log: Log, settings: Settings, stop: asyncio.Event) -> None:
    """Back the catalog up at the start, every hour, and soon after a stage or a candidate is new.

    Raises Unavailable when the catalog turns out to be damaged: it is repaired at the next start.
    """
    catalog = catalog_file(settings.log, settings.folder)
    room = Room(settings.folder, settings.spool.min_free_mb << 20)
    made, held = -math.inf, None
    while catalog is not None and not stop.is_set():
        try:
            holds = log.query("SELECT (SELECT count(*) FROM transitions), (SELECT count(*) FROM candidates)")
            if not room.short() and (holds != held or time.monotonic() - made >= BACKUP_SECONDS):
                await asyncio.to_thread(back_up, catalog)
                made, held = time.monotonic(), holds
        except (OSError, duckdb.Error) as error:
            _log.error("no backup was made: %s", str(error).splitlines()[0])
        await pause(stop, LOOK_SECONDS)


def maintain_log(settings: Settings, now: datetime) -> None:
    """One run of maintenance: retention, compaction, and what is still to be erased."""
    done = maintain(settings.log, settings.folder, settings.spool_folder, settings.log.keep_days, now)
    _log.info("maintenance: %d exchanges were too old and dropped, %d files freed", done.dropped, done.files)
    for late in redo(settings, now):
        names = ", ".join(one.student for one in late.learned) or "no student"
        _log.warning("%d late exchanges of an erased user were erased; %s learned from them", late.exchanges, names)
