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
from datetime import date
from decimal import Decimal, localcontext
from operator import attrgetter
from typing import TypeVar

from proxy.log import Log
from router.bids import bid
from router.books import DIGITS, Books, Entry, Volume, read_books
from router.registry import HOSTED, RETIRED, candidates
from router.settings import RouterSettings
from router.totals import BUSY, IDLE, SERVING, Rival, Totals, totals

FLOOR = RouterSettings().slice_floor
_Of = TypeVar("_Of", Entry, Volume)


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task's figures; None is unknown, not zero: where none of the charges has a price, and of `hosted_usd` while
    an answer to a client has none.

    `rival` is the cheapest hosted model that passes, and `rival_usd` what it would have cost to have it serve what was
    served; None where none passed, and of the latter where it has no price.
    """

    task: str | None
    exchanges: int
    served: int
    fallbacks: int
    teacher_usd: float | None
    unpriced: int
    avoided_usd: float | None
    audit_usd: float | None
    training_usd: float | None
    judge_usd: float | None
    rationale_usd: float | None
    repeat_usd: float | None
    hosted_usd: float | None
    rival: str | None = None
    rival_usd: float | None = None
    replay_usd: float | None = 0.0

    @property
    def learning_usd(self) -> float | None:
        """What making students and judging them was paid; None while a part is unknown."""
        return summed(self.training_usd, self.audit_usd, self.judge_usd, self.rationale_usd, self.repeat_usd)


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
    a served exchange is unpriced, at the teacher or at the hosted candidate that answered it, and where all charges of
    one of the costs are: what has no price is not free.
    `rival_avoided_usd` is what the served exchanges would have cost at the cheapest hosted model that passes, at the
    teacher where none does or it is cheaper; `rival_net_usd` is that less the same costs.
    """

    tasks: tuple[TaskLine, ...]
    teacher_usd: float | None
    unpriced: int
    avoided_usd: float | None
    serving_usd: float | None
    serving_hours: float
    training_usd: float | None
    audit_usd: float | None
    judge_usd: float | None
    rationale_usd: float | None
    repeat_usd: float | None
    hosted_usd: float | None
    net_usd: float | None
    rival_avoided_usd: float | None = None
    rival_net_usd: float | None = None
    busy_hours: float = 0.0
    idle_hours: float = 0.0
    replay_usd: float | None = 0.0
    lines: tuple[Line, ...] = ()
    since: date | None = None
    until: date | None = None

    @property
    def costs_usd(self) -> float | None:
        """All that is subtracted from what was avoided; None while one of the costs is unknown."""
        learned = (self.training_usd, self.audit_usd, self.judge_usd, self.rationale_usd, self.repeat_usd)
        return summed(self.serving_usd, *learned, self.replay_usd, self.hosted_usd)

    @property
    def notes(self) -> tuple[str, ...]:
        """What makes the figures look better than they are."""
        free = {
            "serving": any(one.kind == SERVING and one.quantity and one.usd == 0 for one in self.lines),
            "training": any(one.kind == "training" and one.quantity and one.usd == 0 for one in self.lines),
        }
        names = {"serving": "engine_hour", "training": "training_hour"}
        return tuple(
            f"Hours of {kind} were charged at $0: set money.{names[kind]} to what a machine costs you an hour"
            for kind, so in free.items()
            if so
        )


def report(log: Log, since: date | None = None, until: date | None = None, floor: float = FLOOR) -> Report:
    """The ledger from the day `since` to the day before `until` (UTC); `floor` is `[router] slice_floor`."""
    return reckoned(read_books(log, since, until), rivals(log, floor))


def rivals(log: Log, floor: float) -> dict[str, Rival]:
    """Of each task for which a hosted model passes now, the cheapest; one without a price where no other passes."""
    passing: dict[str, list[Rival]] = {}
    for one in candidates(log):
        if one.kind == HOSTED and one.stage != RETIRED:
            made = bid(log, one, floor)
            if made.passes:
                passing.setdefault(one.task, []).append(
                    Rival(one.id, None if made.usd is None else Decimal(repr(made.usd)))
                )
    return {task: min(those, key=lambda one: (one.usd is None, one.usd or 0)) for task, those in passing.items()}


def reckoned(books: Books, known: Mapping[str, Rival]) -> Report:
    """The ledger of what the books say, with the rivals of their tasks."""
    found = totals(books.entries, books.volumes, books.means, known)
    hours = {unit: float(count) for unit, count in found.hours.items()}
    return Report(
        tasks=_tasks(books, known),
        teacher_usd=_float(found.paid("teacher")),
        unpriced=sum(found.unpriced.values()),
        avoided_usd=_float(found.avoided),
        serving_usd=_float(found.paid(SERVING)),
        serving_hours=float(sum(found.hours.values(), Decimal(0))),
        training_usd=_float(found.paid("training")),
        audit_usd=_float(found.paid("audit")),
        judge_usd=_float(found.paid("judge")),
        rationale_usd=_float(found.paid("rationale")),
        repeat_usd=_float(found.paid("repeat")),
        hosted_usd=_float(found.hosted),
        net_usd=_float(found.net),
        rival_avoided_usd=_float(found.rival_avoided),
        rival_net_usd=_float(found.rival_net),
        busy_hours=hours.get(BUSY, 0.0),
        idle_hours=hours.get(IDLE, 0.0),
        replay_usd=_float(found.paid("replay")),
        lines=_lines(books.entries),
        since=books.since,
        until=books.until,
    )


def _tasks(books: Books, known: Mapping[str, Rival]) -> tuple[TaskLine, ...]:
    """The dearest first."""
    entries = _by_task([one for one in books.entries if one.kind != SERVING])
    volumes = _by_task(books.volumes)
    parts = {
        task: totals(entries.get(task, []), volumes.get(task, []), books.means, known)
        for task in entries.keys() | volumes.keys()
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
        audit_usd=_float(found.paid("audit")),
        training_usd=_float(found.paid("training")),
        judge_usd=_float(found.paid("judge")),
        rationale_usd=_float(found.paid("rationale")),
        repeat_usd=_float(found.paid("repeat")),
        hosted_usd=_float(found.hosted),
        rival=rival.candidate if rival else None,
        rival_usd=float(found.served * rival.usd) if rival and rival.usd is not None else None,
        replay_usd=_float(found.paid("replay")),
    )


def _by_task(those: Sequence[_Of]) -> dict[str | None, list[_Of]]:
    found: dict[str | None, list[_Of]] = {}
    for one in those:
        found.setdefault(one.task, []).append(one)
    return found


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


def summed(*parts: float | None) -> float | None:
    """The sum of amounts; None where one is unknown."""
    known = [usd for usd in parts if usd is not None]
    return sum(known) if len(known) == len(parts) else None


def _float(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)
