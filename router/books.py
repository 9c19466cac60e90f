"""Owns what the ledger is reckoned from: what was paid and answered on each day of a period, as the log has it.

All of it is sums that outlive the exchanges, by UTC's days, in exact decimals; what is no number is unpriced. Must not
know what follows from them. The mean cost of an exchange at the teacher is that of exchanges like those a candidate
answers: shadowed or held back ones that it covered, and audits, of the same month where there are any, else of all
time; where there are none, of all the task's chat. Prices change, so do tasks: the month is what stays comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, localcontext
from typing import Any

from proxy.derive import CHAT
from proxy.log import Log
from proxy.rollups import query

DIGITS = 60  # Of sums and quotients: so many that none is ever rounded that people read.
_WITHIN = (
    "(CAST($since AS DATE) IS NULL OR day >= CAST($since AS DATE)) "
    "AND (CAST($until AS DATE) IS NULL OR day < CAST($until AS DATE))"
)
_ENTRIES = f"""
SELECT day, task, kind, model, unit, CAST(sum(charges) AS BIGINT), CAST(sum(unpriced) AS BIGINT), sum(usd),
       sum(quantity)
FROM days WHERE {_WITHIN} GROUP BY ALL ORDER BY ALL
"""
_VOLUMES = f"""
SELECT day, task, served_by, CAST(sum(exchanges) AS BIGINT), CAST(sum(fallbacks) AS BIGINT),
       CAST(sum(partials) AS BIGINT)
FROM (SELECT *, CAST(hour AS DATE) AS day FROM hours WHERE path IS NOT NULL) WHERE {_WITHIN} GROUP BY ALL ORDER BY ALL
"""
_CHAT = """
SELECT CAST(date_trunc('month', day) AS DATE), task, sum(usd), CAST(sum(charges) - sum(unpriced) AS BIGINT)
FROM days WHERE kind = 'teacher' AND path = $path GROUP BY ALL
"""
# An erased exchange's charge and verdict keep a common name that means nothing else.
_COVERED = """
SELECT CAST(date_trunc('month', ts AT TIME ZONE 'UTC') AS DATE), task, sum(dollars), count(dollars)
FROM (
  SELECT ts, task, TRY_CAST(usd AS DECIMAL(38, 15)) AS dollars FROM spend
  WHERE kind = 'teacher'
    AND exchange IN (SELECT exchange FROM verdicts WHERE covered AND kind IN ('shadow', 'holdback'))
  UNION ALL
  SELECT ts, task, TRY_CAST(usd AS DECIMAL(38, 15)) FROM spend
  WHERE kind = 'audit' AND exchange IN (SELECT exchange FROM verdicts WHERE covered AND kind = 'audit'))
WHERE list_contains($tasks, coalesce(task, '')) GROUP BY ALL
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was paid on one day for one sort of thing; `usd` is of those with a price."""

    day: date
    task: str | None
    kind: str
    model: str | None
    unit: str | None
    events: int
    unpriced: int
    usd: Decimal
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class Volume:
    """Exchanges of a task on one day that one model answered."""

    day: date
    task: str | None
    served_by: str
    exchanges: int
    fallbacks: int
    partials: int = 0
    """Of the exchanges, those whose answer broke off."""

    @property
    def served(self) -> int:
        """Those that the teacher did not answer."""
        return 0 if self.served_by == "teacher" else self.exchanges


# Of a task's month: US dollars, and how many charges they are the sum of.
Sums = Mapping[tuple[str | None, date], tuple[Decimal, int]]


@dataclass(frozen=True, slots=True)
class Means:
    """What an exchange of a task costs at the teacher."""

    covered: Sums
    chat: Sums

    def of(self, task: str | None, day: date) -> Decimal | None:
        """US dollars in the month of `day`; None where no charge of the task has a price."""
        month = day.replace(day=1)
        for known in (self.covered, self.chat):
            usd, count = known.get((task, month), (Decimal(0), 0))
            if not count:
                own = [sums for (name, _), sums in known.items() if name == task]
                usd, count = sum((part for part, _ in own), Decimal(0)), sum(n for _, n in own)
            if count:
                with localcontext(prec=DIGITS):
                    return usd / count
        return None


@dataclass(frozen=True, slots=True)
class Books:
    """A period, from the day `since` to the day before `until`; None is without end."""

    since: date | None
    until: date | None
    entries: Sequence[Entry]
    volumes: Sequence[Volume]
    means: Means


def read_books(log: Log, since: date | None = None, until: date | None = None) -> Books:
    """What the log has of the period."""
    period = {"since": since, "until": until}
    entries = [Entry(*row) for row in query(log, _ENTRIES, period)]
    volumes = [Volume(*row) for row in query(log, _VOLUMES, period)]
    served = sorted({one.task or "" for one in volumes if one.served})
    covered = _sums(log.query(_COVERED, {"tasks": served})) if served else {}
    return Books(since, until, entries, volumes, Means(covered, _sums(query(log, _CHAT, {"path": CHAT}))))


def _sums(rows: Sequence[Sequence[Any]]) -> dict[tuple[str | None, date], tuple[Decimal, int]]:
    return {(task, month): (usd or Decimal(0), int(count)) for month, task, usd, count in rows}
