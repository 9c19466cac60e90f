"""Owns at how many requests a day each student pays for itself, by what it did so far. US dollars.

Of a task, an exchange saves what the teacher was spared by it, less the audits, judges and other charges of evidence
that came with it: measured over the period, on all of the task's exchanges, whoever answered. Against that stands what
there is to pay however much is asked: the engine's day, shared evenly by the students it serves, and a training spread
over AMORTISED days, after which a student is expected to be trained anew.

    break-even rate = (engine's day / students + training / AMORTISED) / saved an exchange       requests a day

Must not know the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

from router.books import DIGITS, Books
from router.registry import HOSTED, RETIRED, Candidate
from router.totals import SERVING, Totals, totals

AMORTISED = 30
_EVIDENCE = ("audit", "judge", "rationale", "repeat", "hosted")  # replays are curiosity
_HOURS = 24


@dataclass(frozen=True, slots=True)
class Student:
    """What one student has to answer to pay for itself; `break_even` is None where it never does, or nobody knows.

    `requests` is how many a day the task had; rates are of the task's requests, whoever answers them.
    """

    candidate: str
    task: str
    stage: str
    served: int
    requests: float
    saved_usd: float | None
    """An exchange."""
    fixed_usd: float | None
    """A day."""
    break_even: float | None
    why: str


def breaking_even(
    books: Books, known: Sequence[Candidate], trained: Mapping[str, Decimal]
) -> tuple[Student, ...]:  # fmt: skip
    """Of every student that is not retired, or answered within the period; `trained` is what making each has cost."""
    answered = {one.served_by for one in books.volumes}
    own = [one for one in known if one.kind != HOSTED and (one.stage != RETIRED or one.id in answered)]
    standing = sum(one.stage != RETIRED for one in own)
    with localcontext(prec=DIGITS):
        return tuple(_student(books, one, max(standing, 1), trained.get(one.id, Decimal(0))) for one in own)


def _student(books: Books, one: Candidate, standing: int, trained: Decimal) -> Student:
    volumes = [volume for volume in books.volumes if volume.task == one.task]
    entries = [entry for entry in books.entries if entry.task == one.task]
    found = totals(entries, volumes, books.means, {})
    saved, fixed = _saved(found), _fixed(books, standing, trained)
    days = (max(volume.day for volume in volumes) - min(volume.day for volume in volumes)).days + 1 if volumes else 1
    rate = fixed / saved if saved is not None and fixed is not None and saved > 0 else None
    why = ""
    if rate is None:
        why = "an exchange saves nothing" if saved is not None and fixed is not None else "what it saves is unpriced"
        why = "it answers nobody yet" if not found.served else "no engine hour was charged" if fixed is None else why
    return Student(
        candidate=one.id,
        task=one.task,
        stage=one.stage,
        served=sum(volume.exchanges for volume in volumes if volume.served_by == one.id),
        requests=found.exchanges / days,
        saved_usd=None if saved is None else float(saved),
        fixed_usd=None if fixed is None else float(fixed),
        break_even=None if rate is None else float(rate),
        why=why,
    )


def _saved(found: Totals) -> Decimal | None:
    paid = [found.paid(group) for group in _EVIDENCE]
    known = [usd for usd in paid if usd is not None]
    if found.avoided is None or found.hosted is None or not found.served or len(known) < len(paid):
        return None
    return (found.avoided - sum(known, Decimal(0))) / found.exchanges


def _fixed(books: Books, standing: int, trained: Decimal) -> Decimal | None:
    """A day of the engine at its mean price an hour, idle or not, and the training's share."""
    serving = [entry for entry in books.entries if entry.kind == SERVING]
    hours = sum((entry.quantity for entry in serving), Decimal(0))
    if not hours or any(entry.unpriced for entry in serving):
        return None
    engine = _HOURS * sum((entry.usd for entry in serving), Decimal(0)) / hours
    return engine / standing + trained / AMORTISED
