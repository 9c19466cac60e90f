"""Owns what a limit is, and how an account counts against it: rates by the minute, money by the month.

Must not know where accounts are kept, nor what an exchange is. Money is whole nano-dollars. An account is one page of
512 numbers: the version; two windows (which minute, its count, the count of the minute before); the months (which,
spent, of it estimated); and what each worker has reserved, in the worker's own slot.
"""

import time
from collections.abc import MutableSequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from proxy.errors import BadInput

NANO = 1_000_000_000
MOST = 1 << 60
"""Amounts of money and counts of tokens are cut off here, so that no sum leaves 64 bits."""
VERSION, NUMBERS, SLOTS = 1, 512, 256
_LARGEST = 1_000_000_000
_REQUESTS, _TOKENS, _MONTHS, _KEPT_MONTHS = 1, 4, 7, 24
_RESERVED = _MONTHS + 3 * _KEPT_MONTHS
_EXACT = 1e-6  # Less than any count: what rounding may take from a wait that was waited out.

Page = MutableSequence[int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may use; None is without limit. The month is the calendar month in UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        """BadInput for what is no limit."""
        for value in (self.requests_per_minute, self.tokens_per_minute):
            if value is not None and (type(value) is not int or not 0 < value <= _LARGEST):
                raise BadInput(f"{value!r} a minute is no limit: give a whole number from 1 to {_LARGEST:,}")
        usd = self.budget_usd
        if usd is not None and (type(usd) not in (int, float) or not 0.01 <= usd <= _LARGEST):
            raise BadInput(f"{usd!r} is no budget: give US dollars a month, from 0.01 to {_LARGEST:,}")


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Need:
    """What one exchange is taken to use until it is known: tokens an estimate, money an upper bound."""

    tokens: int = 0
    nano: int = 0


@dataclass(frozen=True, slots=True)
class Used:
    """What it did use; `estimated` where nobody told us."""

    tokens: int = 0
    nano: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is given back when the exchange is over; `name` is the account's."""

    name: str
    need: Need
    minute: int
    month: int


@dataclass(frozen=True, slots=True)
class Full:
    """There is no room; `wait` is the seconds until there is, if nobody else asks, or None where nobody can know."""

    limit: Literal["requests", "tokens", "budget"]
    wait: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """An account as people see it, this month, in US dollars; `estimated` is a part of `spent`."""

    spent: float = 0.0
    estimated: float = 0.0
    reserved: float = 0.0


def full(page: Page, limits: Limits, need: Need, now: float) -> Full | None:
    """Which limit has no room for one exchange more, or None.

    With nothing reserved one exchange may go over the budget, or the last of it could never be spent; so it is
    overspent by one exchange at most, however many ask at once.
    """
    if limits.requests_per_minute is not None and (wait := _wait(page, _REQUESTS, 1, limits.requests_per_minute, now)):
        return Full("requests", wait)
    if limits.tokens_per_minute is not None:
        wait = _wait(page, _TOKENS, need.tokens, limits.tokens_per_minute, now)
        if wait:
            return Full("tokens", wait)
    if limits.budget_usd is None:
        return None
    budget, spent = round(limits.budget_usd * NANO), page[_month_at(page, _month(now)) + 1]
    reserved = sum(page[_RESERVED : _RESERVED + SLOTS])
    if spent + reserved + need.nano <= budget or (not reserved and spent < budget):
        return None
    return Full("budget", None if spent < budget else _until_next_month(now))


def reserve(page: Page, slot: int, name: str, need: Need, now: float) -> Reservation:
    """Count one exchange as under way, in the slot of the worker it belongs to."""
    minute = int(now // 60)
    for window, count in ((_REQUESTS, 1), (_TOKENS, need.tokens)):
        _turn(page, window, minute)
        page[window + 1] = min(page[window + 1] + count, MOST)
    page[_RESERVED + slot] += need.nano
    return Reservation(name, need, minute, _month(now))


def settle(page: Page, slot: int, made: Reservation, used: Used, now: float) -> None:
    """Count it as over, in the month it was reserved in."""
    page[_RESERVED + slot] -= made.need.nano
    at = _month_at(page, made.month)
    page[at + 1] = min(page[at + 1] + used.nano, MOST)
    page[at + 2] = min(page[at + 2] + used.estimated * used.nano, MOST)
    minute = int(now // 60)
    _turn(page, _TOKENS, minute)
    more = used.tokens - made.need.tokens
    if more > 0:
        page[_TOKENS + 1] = min(page[_TOKENS + 1] + more, MOST)
    elif minute - made.minute in (0, 1):  # Too many were taken off the window they were counted in, if it still counts.
        place = _TOKENS + 1 + minute - made.minute
        page[place] = max(page[place] + more, 0)


def standing(page: Page, now: float) -> Standing:
    """What people see of it; reservations of whoever has a slot."""
    at = _month_at(page, _month(now))
    return Standing(page[at + 1] / NANO, page[at + 2] / NANO, sum(page[_RESERVED : _RESERVED + SLOTS]) / NANO)


def reserving(page: Page) -> list[int]:
    """The slots that have something reserved."""
    return [slot for slot in range(SLOTS) if page[_RESERVED + slot]]


def release(page: Page, slot: int) -> None:
    """Let go of all a slot has reserved: its worker is no more."""
    page[_RESERVED + slot] = 0


def _wait(page: Page, window: int, need: int, limit: int, now: float) -> float:
    """Seconds until `need` more fit under `limit`, 0 where they do.

    The last 60 seconds are this minute, and the share of the one before that they still reach into. What needs more
    than the limit passes when nothing else is counted.
    """
    _turn(page, window, int(now // 60))
    current, before, into = page[window + 1], page[window + 2], now % 60
    room = limit - min(need, limit)
    if before * (1 - into / 60) + current <= room + _EXACT:
        return 0.0
    if current <= room:
        return 60 * (1 - (room - current) / before) - into
    return 60 - into + 60 * (1 - room / current)


def _turn(page: Page, window: int, minute: int) -> None:
    """Bring a window to this minute; a clock that was set is no reason to count on from a minute that is not here."""
    passed = minute - page[window]
    if passed:
        page[window], page[window + 1], page[window + 2] = minute, 0, page[window + 1] if passed == 1 else 0


def _month_at(page: Page, month: int) -> int:
    """Where the month stands in the page; it takes the place of the one two years before."""
    at = _MONTHS + 3 * (month % _KEPT_MONTHS)
    if page[at] != month:
        page[at], page[at + 1], page[at + 2] = month, 0, 0
    return at


def _month(now: float) -> int:
    moment = time.gmtime(now)
    return moment.tm_year * 12 + moment.tm_mon - 1


def _until_next_month(now: float) -> float:
    year, month = divmod(_month(now) + 1, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC).timestamp() - now
