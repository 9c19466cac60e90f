"""Owns the controller's loop: spool -> log -> shadow and audit -> parity -> transitions -> policy.

One per log, held by a lock. Must not know how candidates are made or served: it is told which are ready, and where.
A round that fails is logged and tried again; traffic never depends on it.
"""

import asyncio
import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import duckdb

from proxy.errors import BadInput, StillroomError, Unavailable
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.settings import SunsetSettings
from proxy.teachers import Teachers
from proxy.waiting import pause
from router.ceiling import Ceiling
from router.certificate import Sign
from router.evaluators import JUDGE
from router.gold import audit_share, score_gold
from router.golden import golden
from router.judge import Judge
from router.judging import Appointed
from router.lifecycle import advance, publish, route, unsigned, url_of
from router.news import News
from router.registry import RETIRED, SHADOW, Candidate, Watch
from router.rivals import Rivals, settled
from router.settings import RouterSettings
from router.shadow import audit, shadow
from router.sunset import Ended
from router.templates import changes

_log = logging.getLogger("stillroom.controller")

# Verdicts between two looks at the evidence: small, so that a promotion or a demotion is never far away.
BATCH = 16
PUBLISH_SECONDS = 0.5
CHANGES_SECONDS = 300.0  # between two looks whether instructions were changed: each reads the names of all exchanges
BREATH_SECONDS = 0.01  # between two rounds when there is more to compare

Served = Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Reach:
    """Who can be asked in one round: by `session` the candidates, the `teachers` if any, but for models that ended."""

    session: aiohttp.ClientSession
    teachers: Teachers | None
    ended: Collection[str]


class Controller:
    """Runs until told to stop; `served` says at any moment which candidates are ready at which URL."""

    def __init__(
        self,
        log: Log,
        ingest: Ingest,
        settings: RouterSettings,
        policy: Path,
        served: Served,
        sign: Sign = unsigned,
        judge: Judge | None = None,
        sunsets: Sequence[SunsetSettings] = (),
    ) -> None:
        """Hold the collaborators; `sign` is for certificates; without a `judge`, what only one can score waits."""
        self._log, self._ingest, self._settings = log, ingest, settings
        self._policy, self._served, self._sign = policy, served, sign
        self._appointed = Appointed(log, judge)
        self._watch, self._news, self._ended = Watch(log), News(log), Ended(log, sunsets)
        self._rivals = Rivals(log, settings, judge is not None)
        self._changes: set[tuple[str, str]] = set()  # that were told
        self._looked_for_changes = -CHANGES_SECONDS
        self.last_round: float | None = None  # that succeeded, in seconds of the epoch

    async def run(self, stop: asyncio.Event, teachers: Teachers | None) -> None:
        """Loop; `teachers` answer audits and yardsticks, None where Stillroom has no key of its own."""
        publishing = asyncio.create_task(self._publish_changes(stop))
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                busy = await _unless(stop, self._survived_round(session, teachers))
                await pause(stop, BREATH_SECONDS if busy else self._settings.poll_seconds)
        await publishing
        with _survived("last ingest"):
            self._ingest.run()

    async def _survived_round(self, session: aiohttp.ClientSession, teachers: Teachers | None) -> bool:
        with _survived("round"):
            busy = await self.round(session, teachers)
            self.last_round = time.time()
            return busy
        return False

    async def round(self, session: aiohttp.ClientSession, teachers: Teachers | None) -> bool:
        """One pass over everything; True when there is more to compare at once."""
        self._ingest.run()
        served, reach = self._served(), _Reach(session, teachers, self._ended.now())
        self._news.refresh()
        busy = False
        if self._rivals.look():
            self._publish()
        for candidate in self._watch.now():
            if candidate.stage == RETIRED or not (url := url_of(candidate, served)):
                continue
            if self._news.any(candidate, url):
                more = await self._look(reach, candidate, url)
                self._news.looked(candidate, url, more)
                busy |= more
        if time.monotonic() - self._looked_for_changes >= CHANGES_SECONDS:
            self._looked_for_changes = time.monotonic()
            self.tell_changes()
        return busy

    def tell_changes(self) -> None:
        """Say once of each change of instructions that it happened."""
        for change in changes(self._log, self._watch.now()):
            if (change.candidate, change.now) not in self._changes:
                self._changes.add((change.candidate, change.now))
                _log.warning("%s", change.words)

    async def _look(self, reach: _Reach, candidate: Candidate, url: str) -> bool:
        """Compare and move on; the guardrails need no comparisons, so they are asked where none could be made too."""
        more = False
        with _apart(candidate, "compared"):
            more = await self._compare(reach, candidate, url)
        with _apart(candidate, "judged"):
            if reason := advance(self._log, candidate, self._settings, self._sign):
                _log.warning("%s of task %s moves on: %s", candidate.id, candidate.task, reason)
                self._publish()
        return more

    async def _compare(self, reach: _Reach, candidate: Candidate, url: str) -> bool:
        session, teachers, ended = reach.session, reach.teachers, reach.ended
        asked, at_once = route(candidate, self._settings, url), self._settings.shadow_concurrency
        judge = await self._appointed.judge_of(candidate) if candidate.evaluator == JUDGE else None
        ceiling = None
        if teachers is not None and candidate.stage == SHADOW:  # The proof is paired; what comes later is not.
            ceiling = Ceiling(teachers, self._settings.ceiling_share, ended)
        done = 0
        if not settled(self._log, candidate, self._settings.slice_floor):
            done += await shadow(self._log, session, candidate, asked, BATCH, at_once, ceiling, judge)
        if candidate.stage != SHADOW:
            share = audit_share(self._log, candidate, self._settings.audit_share)
            if teachers is not None:
                done += await audit(self._log, teachers, candidate, share, BATCH, judge, ended)
            if ended:
                done += await golden(self._log, session, candidate, asked, ended, share, BATCH, at_once, judge)
        return done + score_gold(self._log, candidate) > 0

    async def _publish_changes(self, stop: asyncio.Event) -> None:
        """Follow the engine beside the rounds, which may take long; stages are published where they change."""
        published: Mapping[str, str] | None = None
        while not stop.is_set():
            served = dict(self._served())
            if served != published:
                with _survived("publishing"):
                    self._publish()
                    published = served
            await pause(stop, PUBLISH_SECONDS)

    def _publish(self) -> None:
        publish(self._log, self._settings, self._served(), self._policy)


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the log's controller lock; Unavailable when another controller has it. The kernel frees it at any death."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "controller.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another controller works on {home}: stop it first, or use another home") from None
        yield


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, bool]) -> bool:
    """The result of `work`, or False when `stop` comes first: comparisons under way are made again later."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
        return False
    return working.result()


@contextlib.contextmanager
def _apart(candidate: Candidate, what: str) -> Iterator[None]:
    """Log what is wrong with one candidate, such as an operator's evaluator: other tasks must not wait for it."""
    try:
        yield
    except BadInput as error:
        _log.error("%s of task %s is not %s: %s", candidate.id, candidate.task, what, error)


@contextlib.contextmanager
def _survived(what: str) -> Iterator[None]:
    """Log what went wrong with storage or network and go on; a bug still ends the process, which is restarted."""
    try:
        yield
    except (StillroomError, duckdb.Error, aiohttp.ClientError, OSError) as error:
        _log.error("%s failed, trying again: %s", what, str(error).splitlines()[0] if str(error) else error)
