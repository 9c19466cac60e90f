from datetime import UTC, datetime, timedelta

import pytest

from distiller.dashboard import words


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (None, "unpriced"), (0.0, "$0.00"), (0.00123, "$0.0012"), (1.0, "$1.00"), (1234.567, "$1,234.57"),
        (-0.5, "-$0.5000"), (-1234.567, "-$1,234.57"),
    ],
)  # fmt: skip
def test_money(usd: float | None, text: str) -> None:
    assert words.money(usd) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (None, "-"), (0.0, "0%"), (1.0, "100%"), (0.5, "50%"), (0.052, "5.2%"), (0.954, "95.4%"), (0.0004, "<0.1%"),
        (0.9999, ">99.9%"),
    ],
)  # fmt: skip
def test_a_share_never_looks_like_none_or_all_where_it_is_not(part: float | None, text: str) -> None:
    assert words.share(part) == text


def test_counts_times_and_sizes() -> None:
    assert [words.count(None), words.count(0), words.count(1234567)] == ["-", "0", "1,234,567"]
    assert [words.milliseconds(None), words.milliseconds(12.4), words.milliseconds(12_345)] == ["-", "12 ms", "12.3 s"]
    assert [words.size(None), words.size(999), words.size(1500), words.size(2e15)] == [
        "-", "999 bytes", "1.5 kB", "2,000.0 TB",
    ]  # fmt: skip


def test_moments_are_in_utc_and_told_from_now() -> None:
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert words.moment(now) == "2026-11-28 12:00"
    assert words.moment(None) == words.ago(None, now) == "-"
    told = {
        timedelta(seconds=5): "just now", timedelta(minutes=1): "1 minute ago", timedelta(hours=5): "5 hours ago",
        timedelta(days=3): "3 days ago", -timedelta(hours=2): "in 2 hours", -timedelta(seconds=3): "in a moment",
    }  # fmt: skip
    assert {away: words.ago(now - away, now) for away in told} == told


def test_the_course_of_a_chart_is_told_in_words() -> None:
    rows = [("Mon", [2.0, 0.25, None]), ("Tue", [4.0, 0.5, None]), ("Wed", [1.0, None, None])]
    assert words.course(rows, 0, "money") == "$7.00 in all, at most $4.00 (Tue)"
    assert words.course(rows, 0, "count") == "7 in all, at most 4 (Tue)"
    assert words.course(rows, 1, "share") == "25% to 50%, at last 50%"
    assert words.course(rows, 2, "money") == words.course([], 0, "count") == "nothing"


def test_how_long_a_run_took() -> None:
    told = {seconds: words.lasted(timedelta(seconds=seconds)) for seconds in (7, 67, 3720)}
    assert told == {7: "7 s", 67: "1 min 07 s", 3720: "1 h 02 min"}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"), (0.98341, "0.9834"), (1.0, "1"), (0.0, "0"), (0.95, "0.95"), (0.000123, "0.00012"),
        (-0.25, "-0.25"), (1234.5, "1,234.5"), (10.0, "10"), (3, "3"),
    ],
)  # fmt: skip
def test_a_figure_is_exact_enough_to_compare(number: float | None, text: str) -> None:
    assert words.exact(number) == text
