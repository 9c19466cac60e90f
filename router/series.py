"""Owns how the ledger goes on: its days one by one, and what the running month comes to. US dollars.

Must not know the log. A forecast is what the month has so far, and for each day that is left the mean of the newest
whole days, 28 at most: it knows no weekends and no growth, and says what it rests on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from router.books import Books
from router.totals import COSTS, Rival, totals

WINDOW = 28  # days at most, the newest, that a forecast goes by
_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class Day:
    """One day (UTC); `costs` is all that is subtracted, None amounts are unknown as in the ledger."""

    day: date
    exchanges: int
    served: int
    fallbacks: int
    unpriced: int
    teacher_usd: float
    avoided_usd: float | None
    costs_usd: Mapping[str, float]
    net_usd: float | None
    rival_net_usd: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the month of `month` comes to; `basis` says in words what that rests on, None is unknown."""

    month: date
    exchanges: float | None
    teacher_usd: float | None
    avoided_usd: float | None
    costs_usd: float | None
    net_usd: float | None
    basis: str


def days_of(books: Books, rivals: Mapping[str, Rival]) -> tuple[Day, ...]:
    """Every day of the period from the first on which something happened to the last; their sums are the ledger's."""
    seen = sorted({one.day for one in books.entries} | {one.day for one in books.volumes})
    if not seen:
        return ()
    count = (seen[-1] - seen[0]).days + 1
    return tuple(_day(books, rivals, seen[0] + timedelta(days=number)) for number in range(count))


def forecast(days: Sequence[Day], now: datetime) -> Forecast:
    """Of the month that `now` (UTC) is in, from the days up to now."""
    month, today = now.date().replace(day=1), now.date()
    after = (month + timedelta(days=31)).replace(day=1)
    whole = [one for one in days if today - timedelta(days=WINDOW) <= one.day < today]
    so_far = [one for one in days if month <= one.day <= today]
    if not whole:
        return Forecast(month, None, None, None, None, None, "no whole day is known yet")
    midnight = datetime(today.year, today.month, today.day, tzinfo=now.tzinfo)
    left = (after - today).days - (now - midnight).total_seconds() / _SECONDS
    span = (today - whole[0].day).days
    basis = (
        f"{len(so_far)} days of the month so far, and for the {left:.1f} days left the mean of the last {span} whole "
        f"days"
    )

    def whole_month(amounts: Sequence[float | None], usual: Sequence[float | None]) -> float | None:
        known, mean = [one for one in amounts if one is not None], [one for one in usual if one is not None]
        if len(known) < len(amounts) or len(mean) < len(usual):
            return None
        return sum(known) + left * sum(mean) / span

    return Forecast(
        month,
        whole_month([one.exchanges for one in so_far], [one.exchanges for one in whole]),
        whole_month([one.teacher_usd for one in so_far], [one.teacher_usd for one in whole]),
        whole_month([one.avoided_usd for one in so_far], [one.avoided_usd for one in whole]),
        whole_month([sum(one.costs_usd.values()) for one in so_far], [sum(one.costs_usd.values()) for one in whole]),
        whole_month([one.net_usd for one in so_far], [one.net_usd for one in whole]),
        basis,
    )


def _day(books: Books, rivals: Mapping[str, Rival], day: date) -> Day:
    found = totals(
        [one for one in books.entries if one.day == day],
        [one for one in books.volumes if one.day == day],
        books.means,
        rivals,
    )
    return Day(
        day=day,
        exchanges=found.exchanges,
        served=found.served,
        fallbacks=found.fallbacks,
        unpriced=sum(found.unpriced.values()),
        teacher_usd=float(found.usd["teacher"]),
        avoided_usd=None if found.avoided is None else float(found.avoided),
        costs_usd={group: float(found.usd[group]) for group in COSTS},
        net_usd=None if found.net is None else float(found.net),
        rival_net_usd=None if found.rival_net is None else float(found.rival_net),
    )
