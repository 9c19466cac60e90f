"""Owns the checks of the machine: room on its disk, open files, and who may read what must stay secret.

Must not change anything.
"""

import os
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from distiller.finding import FIX, OK, WARN, Finding
from distiller.settings import Settings

FREE_BYTES = 2 << 30
FILES = 4096  # A connection of a client and one to the teacher are two; Debian's usual limit of 1024 is soon reached.


def check_host(settings: Settings) -> Iterator[Finding]:
    """Disk, open files, secrets."""
    yield _disk(settings)
    yield _files()
    yield _secrets(settings)


def _disk(settings: Settings) -> Finding:
    place = settings.folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding("disk", FIX, f"{place} cannot be written: run as its owner, or set home to another folder")
    free = shutil.disk_usage(place).free
    told = f"{free / (1 << 30):.1f} GB free under {place}"
    if free < settings.spool.min_free_mb << 20:
        return Finding("disk", FIX, f"{told}, below spool.min_free_mb: nothing is recorded; free some, or move home")
    if free < FREE_BYTES:
        return Finding("disk", FIX, f"{told}: free at least 2 GB, or move home to another disk")
    return Finding("disk", OK, told)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return Finding("open files", OK, f"a process may have {soft:,} open")
    remedy = f"ulimit -n {min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536}"
    return Finding(
        "open files", WARN, f"a process may have {soft:,} open, two a client: {remedy}, or LimitNOFILE=65536"
    )


def _secrets(settings: Settings) -> Finding:
    """Whatever is there; what is not is made for the owner alone."""
    named = [settings.certificate_key, settings.tenant_salt, settings.keys, settings.schedule_file]
    named += [Path(settings.signing.key)] if settings.signing.key else []
    open_ones = [path for path in named if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_ones:
        names = " ".join(str(path) for path in open_ones)
        return Finding("secrets", FIX, f"other users can reach secrets: chmod 600 {names}")
    there = [path.name for path in named if path.exists()]
    return Finding("secrets", OK, f"for their owner alone: {', '.join(there)}" if there else "none on disk yet")
