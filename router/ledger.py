"""Owns the ledger: what was spent, what was avoided, what learning cost. US dollars throughout.

Every figure is computed from the log's books, so it can be computed again, and stays the same to the last digit when
exchanges go by age or are erased: their counts and charges stay. What is unpriced is counted, never summed as zero.
Avoided spend is an estimate and says so: each exchange that a candidate served, at the mean cost of the same task's
covered exchanges at the teacher (`router.books`). The same exchanges at the cheapest hosted model that has passed the
task's test, where one has, are what a team without Stillroom could have had too: so the net is told against both.
"Audit" is all that the teacher was paid for evidence: audits, and asking it again for the ceiling. "Hosted" is what
hosted candidates were paid: in shadow, for answers to clients, and for answers that fell back. "Rationales" is what the
teacher was paid for saying why it had answered so, "repeats" for answering again what a student was to learn, "replays"
what any model was paid for answering a recorded exchange that an operator asked again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, localcontext
from operator import attrgetter

from proxy.log import Log
from router.bids import bid
from router.books import DIGITS, Books, Entry, read_books
from router.registry import HOSTED, RETIRED, candidates
from router.settings import RouterSettings
from router.totals import BUSY, IDLE, SERVING, Rival, Totals, totals

FLOOR = RouterSettings().slice_floor
_UNPRICED = """
SELECT count(*) FROM spend WHERE ts >= CAST($since AS TIMESTAMPTZ) AND TRY_CAST(usd AS DECIMAL(38, 15)) IS NULL
"""


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task's figures; None is unknown, not zero: of `hosted_usd` while an answer to a client is unpriced.

    `rival` is the cheapest hosted model that passes, and `rival_usd` what it would have cost to have it serve what was
    served; None where none passed.
    """

    task: str | None
    exchanges: int
    served: int
    fallbacks: int
    teacher_usd: float | None
    unpriced: int
    avoided_usd: float | None
    audit_usd: float
    training_usd: float
    judge_usd: float
    rationale_usd: float
    repeat_usd: float
    hosted_usd: float | None
    rival: str | None = None
    rival_usd: float | None = None
    replay_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """What was paid for one kind of thing for one task; `usd` is None where none of it has a price."""

    task: str | None
    kind: str
    unit: str | None
    events: int
    unpriced: int
    quantity: float
    usd: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole ledger.

    `net_usd` = avoided - serving - training - audit - judge - rationales - repeats - replays - hosted. It is None while
    a served exchange is unpriced, at the teacher or at the hosted candidate that answered it.
    `rival_avoided_usd` is what the served exchanges would have cost at the cheapest hosted model that passes, at the
    teacher where none does or it is cheaper; `rival_net_usd` is that less the same costs.
    """

    tasks: tuple[TaskLine, ...]
    teacher_usd: float
    unpriced: int
    avoided_usd: float | None
    serving_usd: float
    serving_hours: float
    training_usd: float
    audit_usd: float
    judge_usd: float
    rationale_usd: float
    repeat_usd: float
    hosted_usd: float | None
    net_usd: float | None
    rival_avoided_usd: float | None = None
    rival_net_usd: float | None = None
    busy_hours: float = 0.0
    idle_hours: float = 0.0
    replay_usd: float = 0.0
    lines: tuple[Line, ...] = ()
    since: date | None = None
    until: date | None = None


def report(log: Log, since: date | None = None, until: date | None = None, floor: float = FLOOR) -> Report:
    """The ledger from the day `since` to the day before `until` (UTC); `floor` is `[router] slice_floor`."""
    return reckoned(read_books(log, since, until), rivals(log, floor))


def rivals(log: Log, floor: float) -> dict[str, Rival]:
    """Of each task for which a hosted model passes now, the cheapest."""
    found: dict[str, Rival] = {}
    for one in candidates(log):
        if one.kind == HOSTED and one.stage != RETIRED:
            made = bid(log, one, floor)
            known = found.get(one.task)
            if made.passes and made.usd is not None and (known is None or made.usd < known.usd):
                found[one.task] = Rival(one.id, Decimal(repr(made.usd)))
    return found


def unpriced(log: Log, since: datetime) -> int:
    """How many charges since then have no price."""
    return int(log.query(_UNPRICED, {"since": since})[0][0])


def reckoned(books: Books, known: Mapping[str, Rival]) -> Report:
    """The ledger of what the books say, with the rivals of their tasks."""
    found = totals(books.entries, books.volumes, books.means, known)
    hours = {unit: float(count) for unit, count in found.hours.items()}
    return Report(
        tasks=_tasks(books, known),
        teacher_usd=float(found.usd["teacher"]),
        unpriced=sum(found.unpriced.values()),
        avoided_usd=_float(found.avoided),
        serving_usd=float(found.usd[SERVING]),
        serving_hours=float(sum(found.hours.values(), Decimal(0))),
        training_usd=float(found.usd["training"]),
        audit_usd=float(found.usd["audit"]),
        judge_usd=float(found.usd["judge"]),
        rationale_usd=float(found.usd["rationale"]),
        repeat_usd=float(found.usd["repeat"]),
        hosted_usd=_float(found.hosted),
        net_usd=_float(found.net),
        rival_avoided_usd=_float(found.rival_avoided),
        rival_net_usd=_float(found.rival_net),
        busy_hours=hours.get(BUSY, 0.0),
        idle_hours=hours.get(IDLE, 0.0),
        replay_usd=float(found.usd["replay"]),
        lines=_lines(books.entries),
        since=books.since,
        until=books.until,
    )


def _tasks(books: Books, known: Mapping[str, Rival]) -> tuple[TaskLine, ...]:
    """The dearest first."""
    paid_for = {one.task for one in books.entries if one.kind != SERVING}
    parts = {
        task: totals(
            [one for one in books.entries if one.task == task and one.kind != SERVING],
            [one for one in books.volumes if one.task == task],
            books.means,
            known,
        )
        for task in {one.task for one in books.volumes} | paid_for
    }
    lines = [_task(task, found, books, known.get(task or "")) for task, found in parts.items()]
    return tuple(sorted(lines, key=lambda one: (-(one.teacher_usd or -1.0), -one.exchanges, str(one.task))))


def _task(task: str | None, found: Totals, books: Books, rival: Rival | None) -> TaskLine:
    days = [one.day for one in books.volumes] or [date.min]
    known = found.avoided is not None and books.means.of(task, days[-1]) is not None
    return TaskLine(
        task=task,
        exchanges=found.exchanges,
        served=found.served,
        fallbacks=found.fallbacks,
        teacher_usd=_float(found.paid("teacher")) if found.events["teacher"] else None,
        unpriced=sum(found.unpriced.values()),
        avoided_usd=_float(found.avoided) if known else None,
        audit_usd=float(found.usd["audit"]),
        training_usd=float(found.usd["training"]),
        judge_usd=float(found.usd["judge"]),
        rationale_usd=float(found.usd["rationale"]),
        repeat_usd=float(found.usd["repeat"]),
        hosted_usd=_float(found.hosted),
        rival=rival.candidate if rival else None,
        rival_usd=float(found.served * rival.usd) if rival else None,
        replay_usd=float(found.usd["replay"]),
    )


def _lines(entries: Sequence[Entry]) -> tuple[Line, ...]:
    """By task and kind; hours apart by what the machine did."""
    named = attrgetter("task", "kind", "unit")
    groups: dict[tuple[str | None, str, str | None], list[Entry]] = {}
    for one in entries:
        groups.setdefault(named(one), []).append(one)
    return tuple(_line(groups[key]) for key in sorted(groups, key=lambda key: [str(part or "") for part in key]))


def _line(own: Sequence[Entry]) -> Line:
    events, without = sum(one.events for one in own), sum(one.unpriced for one in own)
    with localcontext(prec=DIGITS):
        usd, quantity = sum((one.usd for one in own), Decimal(0)), sum((one.quantity for one in own), Decimal(0))
    priced = None if events == without else float(usd)
    return Line(own[0].task, own[0].kind, own[0].unit, events, without, float(quantity), priced)


def _float(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)
