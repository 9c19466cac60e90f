from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from router.books import Books, Entry, Means, Volume
from router.ledger import reckoned
from router.series import WINDOW, Day, days_of, forecast
from router.totals import COSTS

FIRST = date(2026, 6, 1)
MEANS = Means({}, {("t", FIRST): (Decimal("0.3"), 3)})


def books(count: int) -> Books:
    entries, volumes = [], []
    for number in range(0, count, 2):  # Nothing happened on every other day.
        day = FIRST + timedelta(days=number)
        usd = {"teacher": Decimal("1.1"), "judge": Decimal("0.05"), "serving": Decimal("0.2")}
        entries += [Entry(day, "t", kind, None, "exchange", 3, 1, usd, Decimal(3)) for kind, usd in usd.items()]
        volumes += [Volume(day, "t", "teacher", 11, 1), Volume(day, "t", "student-1", 5, 0)]
    return Books(None, None, entries, volumes, MEANS)


def test_days_follow_each_other_and_add_up_to_the_ledger() -> None:
    days, ledger = days_of(books(9), {}), reckoned(books(9), {})
    assert [one.day for one in days] == [FIRST + timedelta(days=number) for number in range(9)]
    assert (days[1].exchanges, days[1].teacher_usd, days[1].avoided_usd, days[1].net_usd) == (0, 0.0, 0.0, 0.0)
    assert (days[0].exchanges, days[0].served, days[0].fallbacks, days[0].unpriced) == (16, 5, 1, 3)
    for name in ("teacher_usd", "avoided_usd", "net_usd", "rival_net_usd", "unpriced"):
        assert sum(getattr(one, name) for one in days) == pytest.approx(getattr(ledger, name))
    for group in COSTS:
        assert sum(one.costs_usd[group] for one in days) == pytest.approx(getattr(ledger, f"{group}_usd"))
    assert days_of(books(0), {}) == ()


def test_a_month_is_what_it_has_and_the_usual_day_for_what_is_left() -> None:
    days = days_of(books(10), {})  # From June 1st to 9th, 5 days with 16 exchanges each.
    found = forecast(days, datetime(2026, 6, 10, 12, tzinfo=UTC))
    mean = 5 * 16 / 9
    assert (found.month, found.exchanges) == (FIRST, pytest.approx(80 + 20.5 * mean))
    assert found.teacher_usd == pytest.approx(5.5 + 20.5 * 5.5 / 9)
    assert found.costs_usd == pytest.approx(5 * 0.25 * (1 + 20.5 / 9))
    assert found.net_usd == pytest.approx((found.avoided_usd or 0) - (found.costs_usd or 0))
    assert found.basis == "9 days of the month so far, and for the 20.5 days left the mean of the last 9 whole days"


def test_the_newest_days_count_and_only_the_month_is_summed() -> None:
    days = days_of(books(60), {})
    found = forecast(days, datetime(2026, 7, 29, tzinfo=UTC))
    july = sum(one.exchanges for one in days if one.day.month == 7)
    newest = sum(one.exchanges for one in days if date(2026, 7, 1) <= one.day < date(2026, 7, 29))
    assert (found.month, found.exchanges) == (date(2026, 7, 1), pytest.approx(july + 3 * newest / WINDOW))


def test_what_is_not_known_is_not_forecast() -> None:
    assert forecast((), datetime(2026, 6, 10, tzinfo=UTC)).basis == "no whole day is known yet"
    unknown = Day(FIRST, 1, 1, 0, 0, 1.0, None, dict.fromkeys(COSTS, 0.0), None, None)
    found = forecast([unknown], datetime(2026, 6, 2, tzinfo=UTC))
    assert (found.avoided_usd, found.net_usd, found.exchanges) == (None, None, 30)
