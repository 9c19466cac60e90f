"""Owns erasing an end user: from the spool, the log, and what quotes it; and saying which students learned from it.

What is promised. When `erase` returns, every exchange of the user that had ended before it was called is gone from all
files under the home folder and the log's data path; the catalog's backups are made anew, and catalogs that a repair
set aside are deleted. One that was under way is spooled later: so the erasure is kept in mind for a day, by digest, and
`redo`, which the controller calls every hour, finds such an exchange and ends likewise; the same for a distillation
that had read the rows already. Money and verdicts stay, and so does the report: they get a made-up id in place of the
exchange's, and answers in verdicts go. Feedback about an erased exchange goes with it, also where a file told it, but
the file is not ours. Weights cannot be edited: the students are named, with what to do about them.

What it cannot find. Who is meant only in a prompt's text; an id that redaction took out before the exchange was kept,
since its placeholder tells nothing of it; rows of a student's holdout whose exchange retention has dropped from the log
already; files that a writer killed within the last hour has left (the controller removes those later); other machines'
spools, backups, and what a PostgreSQL catalog or a versioned object store holds on to.
"""

import json
import shutil
import time
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import duckdb

from distiller.holdings import Holding, cut, spoken, without
from distiller.settings import Settings
from proxy.bodies import decoded
from proxy.dropping import ASKED, drop
from proxy.errors import Unavailable
from proxy.feedback import FEEDBACK, named
from proxy.files import put
from proxy.freeing import deleting, maintaining, release, rewrite, vacuum
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.migrations import migrate
from proxy.patterns import find
from proxy.people import digest, people, scrub
from proxy.spool import CLOSED, OPEN
from proxy.tokens import estimator
from router.controller import only_one
from router.prices import cost, price_map
from router.registry import RETIRED, candidates, move

IN_MIND = timedelta(days=1)  # longer than an exchange or a distillation takes
_PATIENCE = 120.0  # seconds for workers to close their segments and the controller to ingest them
_BREATH = 0.2
_AT_ONCE = 1000  # rows held while looking through the log
_UNLINK = (
    "UPDATE verdicts SET answer = NULL, yardstick_answer = NULL {among} "
    "AND (answer IS NOT NULL OR yardstick_answer IS NOT NULL)",
    "UPDATE verdicts SET exchange = fresh {among}",
    # A teacher's charge has its exchange's id for its own.
    "UPDATE spend SET exchange = fresh, id = uuid()::VARCHAR {among}",
    "UPDATE verdicts SET gold = fresh {golden}",
)
_AMONG = """
FROM (SELECT unnest(CAST($ids AS VARCHAR[])) AS erased, unnest(CAST($fresh AS VARCHAR[])) AS fresh)
WHERE {column} = erased
"""


@dataclass(frozen=True, slots=True)
class Learned:
    """A student that learned from erased exchanges, and what to do about it."""

    student: str
    task: str
    stage: str
    exchanges: int
    advice: str


@dataclass(frozen=True, slots=True)
class Erased:
    """What was removed, by place: `charges` lost their link only, `files` were freed on disk."""

    exchanges: int
    answers: int
    charges: int
    spooled: int
    holdout: int
    golden: int
    files: int
    learned: tuple[Learned, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Erasure:
    """One that is kept in mind: the person's digest, and what was erased, to find it in students made meanwhile."""

    person: str
    before: str
    exchanges: tuple[str, ...] = ()
    conversations: tuple[str, ...] = ()

    def with_found(self, exchanges: Iterable[str], conversations: Iterable[str]) -> "_Erasure":
        return _Erasure(
            self.person,
            self.before,
            tuple(sorted({*self.exchanges, *exchanges})),
            tuple(sorted({*self.conversations, *conversations})),
        )


def erase(settings: Settings, user: str) -> Erased:
    """Erase a user's exchanges; Unavailable where workers or controller do not let go of theirs. Idempotent."""
    before, person = datetime.now(UTC), digest(user)
    with maintaining(settings.folder, _PATIENCE), deleting(settings.log, settings.folder) as log:
        migrate(log)
        erasures = {one.person: one for one in _in_mind(settings, before)}
        old = erasures.get(person, _Erasure(person, ""))
        erasures[person] = _Erasure(person, before.isoformat(), old.exchanges, old.conversations)
        _keep_in_mind(settings, erasures.values())  # First of all: a run that is killed is finished by `redo`.
        _all_ingested(log, settings)
        done, erasures[person] = _remove(log, settings, erasures[person], None, erasures.values())
        files = _free(log, settings)
    return replace(done, files=files, notes=(*done.notes, *_notes(settings, user)))


def redo(settings: Settings, now: datetime) -> list[Erased]:
    """Erase again what is kept in mind, of the last days only, and forget what is old; those that found something."""
    found = []
    with maintaining(settings.folder, 0), deleting(settings.log, settings.folder) as log:
        erasures = {one.person: one for one in _in_mind(settings, now)}
        for person in list(erasures):
            since = datetime.fromisoformat(erasures[person].before) - IN_MIND
            done, erasures[person] = _remove(log, settings, erasures[person], since, erasures.values())
            if done.exchanges or done.spooled or done.holdout or done.golden:
                found.append(done)
        _keep_in_mind(settings, erasures.values())
        files = _free(log, settings) if found else 0
    return [replace(done, files=files) for done in found]


def _remove(
    log: Log, settings: Settings, erasure: _Erasure, since: datetime | None, all_of_them: Iterable[_Erasure]
) -> tuple[Erased, _Erasure]:
    """Everything but the freeing. What was found is written down before any of it goes."""
    before = datetime.fromisoformat(erasure.before)
    fresh = _found(log, erasure.person, since, before)
    fresh |= dict.fromkeys(_said_of(log, {*erasure.exchanges, *fresh}))
    erasure = erasure.with_found(fresh, filter(None, fresh.values()))
    _keep_in_mind(settings, [erasure, *(one for one in all_of_them if one.person != erasure.person)])
    exchanges, conversations = frozenset(erasure.exchanges), frozenset(erasure.conversations)
    scrubbed = scrub(settings.spool_folder, erasure.person, before, exchanges)
    held = cut(settings.students, exchanges, conversations)
    _cut_cards(log, conversations)
    rows, answers, charges = log.transaction(lambda connection: _delete(connection, list(exchanges)))
    left = f"{scrubbed.unclear} torn pieces in the spool do not say whose they are and were left"
    return Erased(
        exchanges=rows,
        answers=answers,
        charges=charges,
        spooled=scrubbed.records,
        holdout=sum(one.judged for one in held),
        golden=sum(one.golden for one in held),
        files=0,
        learned=tuple(_learned(log, held)),
        notes=(left,) if scrubbed.unclear else (),
    ), erasure


def _found(log: Log, person: str, since: datetime | None, before: datetime) -> dict[str, str | None]:
    """Ids of the person's exchanges in the log, and their conversations as `holdings.spoken` gives them."""
    found: dict[str, str | None] = {}
    rows = log.connection.execute(
        "SELECT id, tenant, request, request_encoding, request_headers FROM exchanges "
        "WHERE ts < ? AND ts >= coalesce(?, CAST('-infinity' AS TIMESTAMPTZ))",
        [before, since],
    )
    while some := rows.fetchmany(_AT_ONCE):
        for identity, tenant, request, encoding, headers in some:
            body = request or "", encoding or "utf-8", headers or "[]"
            if person in people(tenant, *body):
                found[identity] = spoken(decoded(*body))
    return found


def _said_of(log: Log, exchanges: Container[str]) -> list[str]:
    """Ids of the feedback about these exchanges, also of what was refused, or came from somebody else."""
    rows = log.query("SELECT id, request, request_encoding, request_headers FROM exchanges WHERE path = ?", [FEEDBACK])
    return [identity for identity, *body in rows if named(decoded(*body)) in exchanges]


def _delete(connection: duckdb.DuckDBPyConnection, exchanges: list[str]) -> tuple[int, int, int]:
    """Exchanges deleted, answers cut, charges unlinked."""
    rows = drop(connection, "id IN (SELECT unnest(CAST($ids AS VARCHAR[])))", {"ids": exchanges})
    for table in ASKED:  # Also what was told after its exchange had gone.
        connection.execute(f"DELETE FROM {table} WHERE exchange IN (SELECT unnest(CAST(? AS VARCHAR[])))", [exchanges])
    names = {"ids": exchanges, "fresh": [str(uuid4()) for _ in exchanges]}
    among, golden = _AMONG.format(column="exchange"), _AMONG.format(column="gold")
    answers, _, charges, _ = (
        int((connection.execute(statement.format(among=among, golden=golden), names).fetchone() or (0,))[0])
        for statement in _UNLINK
    )
    return rows, answers, charges


def _cut_cards(log: Log, conversations: frozenset[str]) -> None:
    """Golden prompts in the log; a student without any cannot be checked when it is loaded, so it is served no more."""
    for candidate in candidates(log):
        fresh = without(candidate.card, conversations)
        if fresh == candidate.card:
            continue
        if not fresh["golden"] and candidate.stage != RETIRED:
            move(log, candidate, RETIRED, "no golden prompt is left: they were an erased user's")
        values = [json.dumps(fresh), candidate.id]
        log.transaction(lambda c, v=values: c.execute("UPDATE candidates SET card = ? WHERE id = ?", v))  # type: ignore[misc]


def _learned(log: Log, held: list[Holding]) -> Iterable[Learned]:
    known = {candidate.id: candidate for candidate in candidates(log)}
    for one in held:
        if not one.learned:
            continue
        candidate = known.get(one.student)
        if candidate is None:
            yield Learned(one.student, "", "unregistered", one.learned, f"delete students/{one.student}")
            continue
        steps = [f"stillroom distill {candidate.task}", f"then delete students/{one.student}"]
        if candidate.stage != RETIRED:
            steps.insert(0, f"stillroom rollback {candidate.task} --reason 'a user was erased'")
        yield Learned(one.student, candidate.task, candidate.stage, one.learned, "; ".join(steps))


def _all_ingested(log: Log, settings: Settings) -> None:
    """Wait until what is in the spool now is in the log; where no controller runs, bring it there."""
    spool = settings.spool_folder
    waiting = _segments(spool)
    if not waiting:
        return
    prices = partial(cost, price_map(settings.money.prices))
    ingest = Ingest(log, spool, settings.spool.keep_days, prices, estimator())
    deadline = time.monotonic() + settings.spool.rotate_seconds + _PATIENCE
    while waiting & _segments(spool):
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"{spool} holds segments nobody ingests: see what `stillroom serve` says, then erase again"
            )
        with suppress(Unavailable), only_one(settings.folder):
            ingest.run()
        time.sleep(_BREATH)


def _segments(spool: Path) -> set[str]:
    return {path.stem for path in spool.glob("*") if path.suffix in (OPEN, CLOSED)}


def _free(log: Log, settings: Settings) -> int:
    """Nothing older than now is spared: a reader that still needs it fails, and asks again."""
    rewrite(log)
    now = datetime.now(UTC)
    files = release(log, now, now)
    catalog = vacuum(settings.log, settings.folder)
    if catalog is not None:
        for damaged in catalog.parent.glob("damaged-*"):  # Set aside by a repair: nobody can say what is in it.
            shutil.rmtree(damaged)
    return files


def _notes(settings: Settings, user: str) -> Iterable[str]:
    known = find(user, replace(settings.redaction, names=False))
    if known or settings.redaction.names:
        how = "replaces" if known else "may replace"
        yield f"redaction {how} this id in bodies before they are kept: of those, only what a tenant names was found"
    if settings.log.catalog.startswith("postgres"):
        yield "the catalog is PostgreSQL's: run VACUUM FULL there, and mind its write-ahead log and backups"
    if making := [folder.name for folder in settings.students.glob(".making-*")]:
        yield f"unfinished in {settings.students}: {', '.join(making)}; where no distillation runs, delete it"


def _store(settings: Settings) -> Path:
    return settings.folder / "state" / "erasures.json"


def _in_mind(settings: Settings, now: datetime) -> list[_Erasure]:
    with suppress(FileNotFoundError):
        stored = json.loads(_store(settings).read_text(encoding="utf-8"))
        every = [
            _Erasure(one["person"], one["before"], tuple(one["exchanges"]), tuple(one["conversations"]))
            for one in stored
        ]
        return [one for one in every if now - datetime.fromisoformat(one.before) < IN_MIND]
    return []


def _keep_in_mind(settings: Settings, erasures: Iterable[_Erasure]) -> None:
    put(_store(settings), json.dumps([asdict(one) for one in erasures]))
