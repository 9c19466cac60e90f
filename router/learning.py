"""Owns the budgets for learning: what may be spent in a month on finding out, and on making students, task by task.

In it count shadows that are paid, judges, yardsticks, audits, rationales, repeats and trainings (`COUNTED`), as the
ledger has them. Before anything is asked its estimate is set aside, so that what runs side by side, in this process or
another, cannot spend the same money; it is let go when the charges are in the ledger. What has no room waits for the
next month, and says so. What a process had set aside when it was killed counts for a day: it may have been paid.

Audits and what is held back of a candidate that answers clients count, and never wait: they cost a share of what the
candidate saves, and without them nobody would see it become worse. So learning gives way to them. US dollars, exact.
"""

import contextlib
import fcntl
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from proxy.derive import CHAT
from proxy.ids import ulid
from proxy.log import Log
from proxy.rollups import query
from router.settings import RouterSettings

_log = logging.getLogger("stillroom.learning")

COUNTED = ("shadow", "judge", "ceiling", "audit", "rationale", "repeat", "training")
FORGOTTEN = timedelta(days=1)  # after which nobody can be at what was set aside
# An estimate is so many times what one has cost on average; a judge reads more than the teacher, and in two orders.
_TIMES, _JUDGE_TIMES = 2, 4
_SPENT = """
SELECT coalesce(sum(usd), 0) FROM days
WHERE task = $task AND day >= CAST($month AS DATE) AND list_contains($counted, kind)
"""
_RESERVED = """
SELECT coalesce(sum(usd), 0) FROM reservations r
WHERE task = $task AND usd > 0 AND ts > CAST($since AS TIMESTAMPTZ)
  AND NOT EXISTS (SELECT 1 FROM reservations s WHERE s.reservation = r.reservation AND s.usd IS NULL)
"""
_MEANS = """
SELECT kind, sum(usd), CAST(sum(charges) - sum(unpriced) AS BIGINT), CAST(sum(charges) AS BIGINT) FROM days
WHERE task = $task AND (list_contains($counted, kind) OR (kind = 'teacher' AND path = $path)) GROUP BY kind
"""
_EVENT = "INSERT INTO reservations VALUES (?, ?, ?, ?, CAST(? AS DECIMAL(38, 15)))"


@dataclass(frozen=True, slots=True)
class Account:
    """One task's month."""

    budget: Decimal
    spent: Decimal
    reserved: Decimal

    @property
    def left(self) -> Decimal:
        """What can still be set aside; 0 where it is overdrawn, as by audits."""
        return max(self.budget - self.spent - self.reserved, Decimal(0))

    @property
    def used(self) -> float:
        """The share that is spent or set aside; above 1 where it is overdrawn."""
        return float((self.spent + self.reserved) / self.budget)


class Learning:
    """The budgets of one log; `lock` is a file that all processes that spend of them see."""

    def __init__(
        self, log: Log, settings: RouterSettings, lock: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Nothing is looked at yet."""
        self._log, self._lock, self._clock = log, lock, clock
        declared = {task: said.learning_budget for task, said in settings.tasks.items()}
        self._budgets = {task: Decimal(repr(usd)) for task, usd in declared.items() if usd}
        self._waits: dict[str, str] = {}

    @property
    def waits(self) -> Mapping[str, str]:
        """Tasks whose learning waits, and for what, in words."""
        return self._waits

    def account(self, task: str) -> Account | None:
        """The task's month so far; None where it has no budget."""
        budget = self._budgets.get(task)
        if budget is None:
            return None
        now = self._clock()
        counted = {"task": task, "month": _month(now), "counted": list(COUNTED)}
        ((spent,),) = query(self._log, _SPENT, counted)
        ((reserved,),) = self._log.query(_RESERVED, {"task": task, "since": now - FORGOTTEN})
        return Account(budget, spent, reserved)

    @contextlib.contextmanager
    def exchanges(self, task: str, kinds: Collection[str], most: int) -> Iterator[int]:
        """Set aside what asking up to `most` exchanges may cost, each as all of `kinds`; yields for how many there is.

        0: nothing may be asked now. The charges have to be in the ledger when this is left.
        """
        if task not in self._budgets or not kinds:
            yield most
            return
        each = self._each(task, kinds)
        if each is None:
            self._say(task, "what an exchange costs is unpriced, so no budget can be kept: set [money.prices]")
            yield 0
            return
        with self.up_to(task, most * each, each) as granted:
            yield most if not each else min(most, math.floor(granted / each))

    @contextlib.contextmanager
    def up_to(self, task: str, wanted: Decimal, least: Decimal = Decimal(0)) -> Iterator[Decimal]:
        """Set aside as much of `wanted` as there is, nothing where that is below `least`; yields how much."""
        if task not in self._budgets:
            yield wanted
            return
        reservation = ulid()
        granted = self._reserve(task, reservation, wanted, least)
        try:
            yield granted
        finally:
            if granted:
                self._write(reservation, task, None)

    def _reserve(self, task: str, reservation: str, wanted: Decimal, least: Decimal) -> Decimal:
        with self._locked():
            found = self.account(task)
            assert found is not None  # There is a budget.
            granted = min(wanted, found.left)
            if granted < least or (wanted and not granted):
                self._say(
                    task,
                    f"of its learning budget of ${found.budget:,.2f} a month ${found.spent:,.4f} are spent and "
                    f"${found.reserved:,.4f} set aside, and ${max(least, Decimal(0)):,.4f} are needed at least",
                )
                return Decimal(0)
            self._waits.pop(task, None)
            if granted:
                self._write(reservation, task, granted)
            return granted

    def _write(self, reservation: str, task: str, usd: Decimal | None) -> None:
        """An event: so much is set aside, or where it is None, no longer."""
        values = [ulid(), self._clock(), reservation, task, usd]
        self._log.transaction(lambda connection: connection.execute(_EVENT, values))

    def _each(self, task: str, kinds: Collection[str]) -> Decimal | None:
        """The most that one exchange is taken to cost; None where what was asked has no price."""
        rows = query(self._log, _MEANS, {"task": task, "counted": list(COUNTED), "path": CHAT})
        means = {kind: usd / count for kind, usd, count, _ in rows if count}
        unpriced = {kind for kind, _, count, charges in rows if charges and not count}
        total = Decimal(0)
        for kind in kinds:
            times = _TIMES if kind in means or kind != "judge" else _JUDGE_TIMES
            usd = means.get(kind, means.get("teacher"))
            if usd is None or kind in unpriced:
                return None
            total += times * usd
        return total

    def _say(self, task: str, why: str) -> None:
        if self._waits.get(task) != why:
            self._waits[task] = why
            _log.warning("learning about task %s waits: %s", task, why)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes: the log would take what two of them set aside at once."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _month(now: datetime) -> date:
    return now.astimezone(UTC).date().replace(day=1)
