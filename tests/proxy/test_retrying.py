from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.retrying import FIRST_BACKOFF, LONGEST_BACKOFF, LONGEST_RETRY_AFTER, backoff, retry_after

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()


def asks(value: bytes) -> float | None:
    return retry_after([(b"Retry-After", value)], NOW)


@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_backoff_lies_between_nothing_and_its_bound(retry: int, draw: float) -> None:
    assert 0 <= backoff(retry, draw) <= min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(retry, 20))


def test_the_bound_doubles_and_the_jitter_is_full() -> None:
    assert [backoff(retry, 1.0) for retry in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert [backoff(retry, 0.0) for retry in range(6)] == [0.0] * 6


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0), (b"20", 20.0), (b" 1.5 ", 1.5), (b"86401", LONGEST_RETRY_AFTER), (b"9" * 400, LONGEST_RETRY_AFTER),
        (b"Sun, 01 Mar 2026 12:00:30 GMT", 30.0), (b"Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        (b"Sun Mar  1 12:00:10 2026", 10.0), (b"Sunday, 01-Mar-26 12:00:10 GMT", 10.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER), (b"Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
    ],
)  # fmt: skip
def test_seconds_and_dates_are_understood_and_bounded(value: bytes, seconds: float) -> None:
    assert asks(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"", b"-1", b"-0", b"+5", b"1e3", b"nan", b"NaN", b"inf", b"0x10", b"1_000", b"1.", b".5", b"5 s", b"soon",
        "\u0663".encode(), b"\xff", b"\0", b"Sun, 99 Mar 2026 12:00:30 GMT", b"Sun, 01 Mar 99999 12:00:30 GMT", b",",
    ],
)  # fmt: skip
def test_what_makes_no_sense_asks_for_nothing(value: bytes) -> None:
    assert asks(value) is None


def test_milliseconds_go_first_and_no_header_asks_for_nothing() -> None:
    assert retry_after([(b"retry-after", b"2"), (b"Retry-After-Ms", b"1500")], NOW) == 1.5
    assert retry_after([(b"retry-after", b"2"), (b"retry-after-ms", b"nan")], NOW) == 2.0
    assert retry_after([(b"content-type", b"text/plain")], NOW) is None


@given(st.integers(-(10**6), 10**6), st.integers(0, 3600))
def test_a_date_is_measured_by_the_clock_of_who_gave_it(skew: int, seconds: int) -> None:
    sent = NOW + skew
    dates = [format_datetime(datetime.fromtimestamp(moment, UTC), usegmt=True) for moment in (sent + seconds, sent)]
    headers = [(b"retry-after", dates[0].encode()), (b"date", dates[1].encode())]
    assert retry_after(headers, NOW) == seconds


@given(st.binary(), st.binary())
@example(b"Mon, 01 Jan 0001 00:00:00 +9999", b"")
def test_no_header_breaks_it(value: bytes, date: bytes) -> None:
    seconds = retry_after([(b"retry-after", value), (b"date", date)], NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


@given(st.text(alphabet="0123456789:,+- GMTSunMarJanZ"))
def test_nothing_that_looks_like_a_date_breaks_it(value: str) -> None:
    seconds = asks(value.encode())
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER
