import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.limits import (
    MOST,
    NANO,
    NUMBERS,
    VERSION,
    Full,
    Limits,
    Need,
    Page,
    Used,
    full,
    reserve,
    settle,
    standing,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
SMALL = Limits(budget_usd=1.0)


def page() -> Page:
    return [VERSION, *[0] * (NUMBERS - 1)]


@pytest.mark.parametrize("wrong", [0, -1, True, "5", 1.5, 10**12])
def test_what_is_no_limit_is_refused(wrong: object) -> None:
    with pytest.raises(BadInput, match="is no limit"):
        Limits(requests_per_minute=wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="is no limit"):
        Limits(tokens_per_minute=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0, -1.0, True, "5", math.nan, math.inf])
def test_what_is_no_budget_is_refused(wrong: object) -> None:
    with pytest.raises(BadInput, match="is no budget"):
        Limits(budget_usd=wrong)  # type: ignore[arg-type]


@given(
    asked=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 12)), max_size=20),
    after=st.floats(0, 90),
    need=st.integers(1, 20),
    limit=st.integers(1, 12),
)
def test_after_the_wait_there_is_room(asked: list[tuple[int, int]], after: float, need: int, limit: int) -> None:
    account, now = page(), NOW
    for seconds, tokens in asked:
        now += seconds
        reserve(account, 0, "a", Need(tokens), now)
    now += after
    found = full(account, Limits(tokens_per_minute=limit), Need(need), now)
    if found is not None:
        assert found.limit == "tokens"
        assert found.wait is not None
        assert 0 < found.wait <= 120
        early = full(list(account), Limits(tokens_per_minute=limit), Need(need), now + found.wait * 0.99 - 0.01)
        assert early is not None
        assert full(account, Limits(tokens_per_minute=limit), Need(need), now + found.wait) is None


def test_requests_are_counted_by_the_minute() -> None:
    account, limits = page(), Limits(requests_per_minute=3)
    for _ in range(3):
        assert full(account, limits, Need(), NOW) is None
        reserve(account, 0, "a", Need(), NOW)
    assert full(account, limits, Need(), NOW) == Full("requests", 80.0)  # a third of the last minute is gone by then
    assert full(account, limits, Need(), NOW + 79) is not None
    assert full(account, limits, Need(), NOW + 80) is None


def test_tokens_are_corrected_when_they_are_known() -> None:
    account, limits = page(), Limits(tokens_per_minute=100)
    made = reserve(account, 0, "a", Need(100), NOW)
    assert full(account, limits, Need(10), NOW) is not None
    settle(account, 0, made, Used(20), NOW + 1)
    assert full(account, limits, Need(80), NOW + 1) is None
    assert full(account, limits, Need(81), NOW + 1) is not None
    late = reserve(account, 0, "a", Need(10), NOW + 1)
    settle(account, 0, late, Used(90), NOW + 300)  # what came later counts when it came
    assert full(account, limits, Need(20), NOW + 300) is None
    assert full(account, limits, Need(21), NOW + 300) is not None
    settle(account, 0, reserve(account, 0, "a", Need(20), NOW + 310), Used(5), NOW + 365)
    assert full(account, limits, Need(21), NOW + 419) is None


def test_the_month_is_utcs_and_an_exchange_counts_in_the_month_it_was_asked() -> None:
    end = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    account = page()
    made = reserve(account, 0, "a", Need(0, NANO // 2), end)
    settle(account, 0, reserve(account, 0, "a", Need(0, NANO), end), Used(0, NANO), end)
    assert full(account, SMALL, Need(), end) == Full("budget", 1.0)
    assert full(account, SMALL, Need(0, NANO // 2), end + 1) is None
    settle(account, 0, made, Used(0, NANO // 4, True), end + 2)
    assert standing(account, end + 2).spent == 0
    assert standing(account, end).spent == 1.25
    assert standing(account, end).estimated == 0.25


def test_one_alone_may_go_over_and_only_while_something_is_left() -> None:
    account = page()
    assert full(account, SMALL, Need(0, 5 * NANO), NOW) is None
    made = reserve(account, 0, "a", Need(0, 5 * NANO), NOW)
    assert full(account, SMALL, Need(0, 1), NOW) == Full("budget", None)
    settle(account, 0, made, Used(0, NANO - 1), NOW)
    assert full(account, SMALL, Need(0, 5 * NANO), NOW) is None
    settle(account, 0, reserve(account, 0, "a", Need(0, 1), NOW), Used(0, 1), NOW)
    assert full(account, SMALL, Need(0, 1), NOW) is not None
    assert full(account, SMALL, Need(0, 0), NOW) is None


def test_amounts_stay_within_64_bits() -> None:
    account = page()
    for _ in range(3):
        settle(account, 0, reserve(account, 0, "a", Need(MOST, MOST), NOW), Used(MOST, MOST, True), NOW)
    assert max(account) < 1 << 63
    assert min(account) >= 0


@pytest.mark.parametrize("later", [120, 600, -60])
def test_a_window_that_is_gone_is_not_corrected(later: int) -> None:
    pages = page(), page()
    for account, tokens in zip(pages, (10, 100), strict=True):
        settle(account, 0, reserve(account, 0, "a", Need(100), NOW), Used(tokens), NOW + later)
    assert pages[0] == pages[1]
