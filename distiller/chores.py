"""Owns the chores of the controller: retention, compaction, backups, prices, certificates; each says what it did.

Must not know when they are due. What hinders one is said as its outcome, and tried again by the schedule.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import duckdb

from distiller.erase import redo
from distiller.foreman import Work
from distiller.runs import FAILED, OK, REFUSED, SKIPPED, End, Run, Wish
from distiller.settings import Settings
from proxy.backup import back_up
from proxy.errors import StillroomError, Unavailable
from proxy.log import Log, catalog_file, open_log
from proxy.retention import maintain
from proxy.spool import Room
from router.registry import CANARY, LIVE, Candidate, candidates, certificate_of
from router.verification import verify

_log = logging.getLogger("stillroom.chores")


class Damaged(Exception):
    """The log's catalog is broken: no outcome of a chore but the end of the controller, whose next start repairs it."""


BACKUP_SECONDS = 3600  # between two backups, as the schedule has it by default
FEWEST = 30  # comparisons since; fewer say nothing of a fall
Chore = Callable[[Settings, datetime], End]
_CERTIFIED = "SELECT max(ts) FROM transitions WHERE candidate = ? AND certificate IS NOT NULL"
_COMPARED = """
SELECT count(*) FROM verdicts
WHERE candidate = ? AND kind IN ('audit', 'holdback', 'golden') AND covered AND verdict IS NOT NULL AND ts >= ?
"""


def works(settings: Settings, prices: Callable[[datetime], str]) -> dict[str, Work]:
    """Of each chore how it is run; `prices` looks at the price map again, on the loop, and says what it found."""

    async def refreshed(run: Run, gpu: str) -> End:
        return _survived(lambda: End(OK, prices(datetime.now(UTC))))

    own: Mapping[str, Chore] = {
        "retention": retention, "compaction": compaction, "backup": backup, "certificates": certificates,
    }  # fmt: skip
    done_by: dict[str, Work] = {name: partial(_apart, chore, settings) for name, chore in own.items()}
    return {**done_by, "prices": refreshed}


def wanted_backup(log: Log, now: datetime) -> list[Wish]:
    """One for each new candidate or stage: what a repair would lose that nothing else could bring back."""
    ((stages, known),) = log.query("SELECT (SELECT count(*) FROM transitions), (SELECT count(*) FROM candidates)")
    cause = f"stages {stages} {known}"
    return [Wish("backup", "backup", cause, "a stage or a candidate is new", now)] if stages else []


async def _apart(chore: Chore, settings: Settings, run: Run, gpu: str) -> End:
    """In a thread, beside the loop, which must not wait for it."""
    return await asyncio.to_thread(lambda: _survived(lambda: chore(settings, datetime.now(UTC))))


def _survived(chore: Callable[[], End]) -> End:
    try:
        return chore()
    except (StillroomError, duckdb.Error, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        _log.error("%s", said)
        return End(FAILED, said)


def retention(settings: Settings, now: datetime) -> End:
    """Drop what is older than `log.keep_days`."""
    if not settings.log.keep_days:
        return End(SKIPPED, "log.keep_days is 0: everything is kept")
    done = maintain(settings.log, settings.folder, settings.spool_folder, settings.log.keep_days, now)
    return End(OK, f"{done.dropped} exchanges were older than {settings.log.keep_days} days, {done.files} files freed")


def compaction(settings: Settings, now: datetime) -> End:
    """Make small files few, and erase what came late of who was erased."""
    done = maintain(settings.log, settings.folder, settings.spool_folder, 0, now)
    late = redo(settings, now)
    for one in late:
        names = ", ".join(learned.student for learned in one.learned) or "no student"
        _log.warning("%d late exchanges of an erased user were erased; %s learned from them", one.exchanges, names)
    erased = sum(one.exchanges for one in late)
    return End(OK, f"{done.files} files freed" + (f", {erased} late exchanges of erased users erased" if late else ""))


def backup(settings: Settings, now: datetime) -> End:
    """Copy the log's catalog. Raises Damaged where that is broken: it is repaired when the controller starts."""
    catalog = catalog_file(settings.log, settings.folder)
    if catalog is None:
        return End(SKIPPED, "the log's catalog is no file: who runs its database backs it up")
    if Room(settings.folder, settings.spool.min_free_mb << 20).short():
        return End(SKIPPED, "the disk has less free than spool.min_free_mb")
    try:
        return End(OK, back_up(catalog).name)
    except Unavailable as error:
        raise Damaged(str(error)) from None


def certificates(settings: Settings, now: datetime) -> End:
    """Compute those again that are older than `schedule.certificate_days`, and look whether anything still tells.

    One is renewed where it holds as it was signed, and what was compared within as many days does not refute it. The
    others are told: their candidates answer on, as age alone is no evidence against them.
    """
    if not settings.schedule.certificate_days:
        return End(SKIPPED, "schedule.certificate_days is 0")
    limit = now - timedelta(days=settings.schedule.certificate_days)
    log = open_log(settings.log, settings.folder, read_only=True)
    try:
        answering = [one for one in candidates(log) if one.stage in (CANARY, LIVE)]
        old = [one for one in answering if _certified(log, one) < limit]
        problems = [said for one in old if (said := expired(log, settings, one, limit))]
    finally:
        log.close()
    if problems:
        return End(REFUSED, "; ".join(problems))
    return End(OK, f"{len(answering)} certificates in use, {len(old)} of them old and renewed")


def expired(log: Log, settings: Settings, candidate: Candidate, since: datetime) -> str | None:
    """Why the certificate of a candidate cannot be renewed, in words, or None."""
    document = certificate_of(log, candidate.id)
    if document is None:
        return f"{candidate.id} of {candidate.task} has no certificate"
    found = verify(log, document, settings.certificate_key, settings.router.slice_floor)
    if not found.holds:
        return f"the certificate of {candidate.id} of {candidate.task} {found.conclusion}"
    ((compared,),) = log.query(_COMPARED, [candidate.id, since])
    if compared < FEWEST:
        return (
            f"the certificate of {candidate.id} of {candidate.task} is older than {settings.schedule.certificate_days} "
            f"days, and only {compared} of its answers were compared since: see teacher.key_env and router.audit_share"
        )
    return None


def _certified(log: Log, candidate: Candidate) -> datetime:
    ((when,),) = log.query(_CERTIFIED, [candidate.id])
    return candidate.created_at if when is None else when
