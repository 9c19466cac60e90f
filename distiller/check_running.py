"""Owns the checks of what a controller keeps up: the spool is read, the catalog copied, engines serve.

Must not change anything. While no controller runs, old figures are no fault, and say so.
"""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from distiller.chores import BACKUP_SECONDS
from distiller.finding import FIX, OK, WARN, Finding
from distiller.running import controlled
from distiller.settings import Settings
from proxy.backup import backups
from proxy.log import catalog_file
from proxy.quarantine import quarantined
from proxy.vitals import SPOOL_SECONDS, waiting


def check_running(settings: Settings) -> Iterator[Finding]:
    """Controller, spool, quarantine, backups, engines."""
    running = controlled(settings.folder)
    told = "runs" if running else "does not run: start it with `stillroom serve`"
    yield Finding("controller", OK, f"{told} ({settings.folder})")
    yield _spool(settings, running)
    lines = quarantined(settings.spool_folder)
    held = f"{lines:,} lines were no records: their reasons stand in {settings.spool_folder / 'quarantine'}"
    yield Finding("quarantine", WARN if lines else OK, held if lines else "empty")
    yield _backups(settings, running)
    yield from _engines(settings, running)


def _spool(settings: Settings, running: bool) -> Finding:
    found = waiting(settings.spool_folder)
    if found.since is None:
        return Finding("spool", OK, "nothing waits for the log")
    age = max(time.time() - found.since, 0.0)
    told = f"{found.segments:,} segments ({found.size / 1e6:,.1f} MB) wait for the log, the oldest {age:,.0f} s"
    if not running:
        return Finding("spool", OK, f"{told}; `stillroom serve` takes them in")
    if age > SPOOL_SECONDS:
        return Finding("spool", FIX, f"{told}: the messages of `stillroom serve` say why; nothing is lost meanwhile")
    return Finding("spool", OK, told)


def _backups(settings: Settings, running: bool) -> Finding:
    catalog = catalog_file(settings.log, settings.folder)
    if catalog is None:
        return Finding("backups", OK, "the catalog is a database of yours: see to its backups")
    made = backups(catalog)
    if not made:
        level = WARN if running and catalog.exists() else OK
        return Finding("backups", level, "no copy of the log's catalog yet; `stillroom serve` makes them hourly")
    written = datetime.strptime(made[0].stem.partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    hours = (datetime.now(UTC) - written).total_seconds() / 3600
    told = f"{len(made)} copies of the log's catalog, the newest {hours:,.1f} hours old"
    late = running and hours * 3600 > 2 * BACKUP_SECONDS
    remedy = ": the messages of `stillroom serve` say why none was made since"
    return Finding("backups", WARN if late else OK, told + (remedy if late else ""))


def _engines(settings: Settings, running: bool) -> Iterator[Finding]:
    """What the controller last wrote of each; without a controller nobody serves, and nobody should."""
    for place in (settings.engine_state, *settings.more_engine_states, settings.small_state):
        if not running or not place.exists():
            continue
        state = json.loads(place.read_text(encoding="utf-8"))
        what = place.stem.replace("small", "small engine")
        if state["state"] == "down":
            yield Finding(what, FIX, f"down ({state.get('reason')}): see {settings.folder / 'logs'}")
        else:
            yield Finding(what, OK, f"{state['state']}, with {len(state['ready'])} students")
        for student, reason in state.get("failed", {}).items():
            yield Finding(what, FIX, f"{student} is not served: {reason}")
