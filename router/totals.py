"""Owns the sums of the ledger: of any part of the books - a task, a day, all of it - in exact decimals. US dollars.

Must not know the log. What is unpriced is counted, never summed as zero; avoided spend is an estimate (`router.books`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from types import MappingProxyType

from router.books import DIGITS, Entry, Means, Volume

SERVING = "serving"
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "teacher": ("teacher",), "training": ("training",), "audit": ("audit", "ceiling"), "judge": ("judge",),
        "rationale": ("rationale",), "repeat": ("repeat",), "hosted": ("shadow", "candidate", "fallback"),
        "replay": ("replay",), SERVING: (SERVING,),
    }
)  # fmt: skip
"""Which kinds of charges are summed under which name."""
COSTS = (SERVING, "training", "audit", "judge", "rationale", "repeat", "replay", "hosted")
"""What is subtracted from what was avoided."""
BUSY, IDLE = "busy hour", "idle hour"  # units of serving; a plain "hour" is one of which nobody knows


@dataclass(frozen=True, slots=True)
class Rival:
    """The cheapest hosted model that passes a task's test, and what an exchange costs under it; None is unknown."""

    candidate: str
    usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Of some part of the books; `usd` by group is of what has a price, `events` and `unpriced` of all.

    `avoided` is None where a served exchange cannot be priced, `hosted` where an answer to a client cannot.
    `rival_avoided` is what the served ones would have cost at the cheapest that passes, the teacher included.
    """

    exchanges: int
    served: int
    fallbacks: int
    events: Mapping[str, int]
    unpriced: Mapping[str, int]
    usd: Mapping[str, Decimal]
    hours: Mapping[str | None, Decimal]
    """Of serving, by unit."""
    avoided: Decimal | None
    rival_avoided: Decimal | None
    hosted: Decimal | None

    @property
    def net(self) -> Decimal | None:
        """What was avoided, less all that it took; None while that is unknown, as where a group has no price."""
        return self._less_costs(self.avoided)

    @property
    def rival_net(self) -> Decimal | None:
        """The same against the cheapest hosted model that passes."""
        return self._less_costs(self.rival_avoided)

    def paid(self, group: str) -> Decimal | None:
        """None where there were charges and none of them has a price."""
        return None if self.events[group] and self.events[group] == self.unpriced[group] else self.usd[group]

    def _less_costs(self, avoided: Decimal | None) -> Decimal | None:
        paid = [self.paid(group) for group in COSTS]
        known = [usd for usd in paid if usd is not None]
        if avoided is None or self.hosted is None or len(known) < len(paid):
            return None
        with localcontext(prec=DIGITS):
            return avoided - sum(known, Decimal(0))


def totals(
    entries: Sequence[Entry], volumes: Sequence[Volume], means: Means, rivals: Mapping[str, Rival]
) -> Totals:  # fmt: skip
    """The sums of these."""
    with localcontext(prec=DIGITS):
        usd = {group: _usd(one for one in entries if one.kind in kinds) for group, kinds in GROUPS.items()}
        answered = all(one.kind != "candidate" or not one.unpriced for one in entries)
        units = {one.unit for one in entries if one.kind == SERVING}
        return Totals(
            exchanges=sum(one.exchanges for one in volumes),
            served=sum(one.served for one in volumes),
            fallbacks=sum(one.fallbacks for one in volumes),
            events={group: sum(one.events for one in entries if one.kind in kinds) for group, kinds in GROUPS.items()},
            unpriced={
                group: sum(one.unpriced for one in entries if one.kind in kinds) for group, kinds in GROUPS.items()
            },
            usd=usd,
            hours={unit: _hours(one for one in entries if one.unit == unit) for unit in units},
            avoided=_avoided(volumes, means, {}),
            rival_avoided=_avoided(volumes, means, rivals),
            hosted=usd["hosted"] if answered else None,
        )


def _avoided(volumes: Iterable[Volume], means: Means, rivals: Mapping[str, Rival]) -> Decimal | None:
    """What the served exchanges would have cost at the teacher, or at the task's rival where that is cheaper."""
    total = Decimal(0)
    for one in volumes:
        if one.served:
            rival = rivals.get(one.task or "")
            if rival is not None and rival.usd is None:
                return None  # It passed, and nobody knows for how much.
            each = [usd for usd in (means.of(one.task, one.day), rival.usd if rival else None) if usd is not None]
            if not each:
                return None
            total += (one.served - one.partials) * min(each)  # What broke off is asked again, and paid then.
    return total


def _usd(entries: Iterable[Entry]) -> Decimal:
    return sum((one.usd for one in entries), Decimal(0))


def _hours(entries: Iterable[Entry]) -> Decimal:
    return sum((one.quantity for one in entries if one.kind == SERVING), Decimal(0))
