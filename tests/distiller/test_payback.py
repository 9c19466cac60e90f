import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.payback import AMORTISED, Figure, Prices, break_even, payback

HALF = Figure(0.5, "half", 0.25, 0.75)
KNOWN = Prices(teacher_usd=0.01, training_usd=30.0, engine_hour=1.0, audit_share=0.0, holdback_share=0.0)


def priced(**changes: float | None) -> Prices:
    given = {name: getattr(KNOWN, name) for name in KNOWN.__slots__} | changes
    return Prices(**given)  # type: ignore[arg-type]


def test_break_even_is_cost_over_what_an_exchange_avoids() -> None:
    found = break_even(HALF, KNOWN)
    assert (found.value, found.low, found.high) == pytest.approx((5000, 25 / 0.0075, 10000))
    assert "$24.00 a day" in found.basis


def test_audits_and_the_holdback_are_still_paid_to_the_teacher() -> None:
    assert priced(audit_share=0.5, holdback_share=0.2).avoided(0.5) == pytest.approx(0.002)


def test_a_training_is_earned_back_by_what_is_left_of_a_week() -> None:
    found = payback(HALF, Figure(10000, "counted"), KNOWN)
    assert found.value == pytest.approx(30 / (7 * (50 - 24)))
    assert found.low == pytest.approx(30 / (7 * (75 - 24)))
    assert found.high == pytest.approx(30 / (7 * (25 - 24)))
    assert payback(HALF, Figure(8000, "counted"), KNOWN).high is None


def test_never_is_told_from_unknown() -> None:
    late = payback(HALF, Figure(100, "counted"), KNOWN)
    assert (late.value, late.never) == (None, True)
    assert "$0.50 a day are avoided" in late.basis
    nothing = break_even(Figure(0.0, "none"), KNOWN)
    assert (nothing.value, nothing.never) == (None, True)


@pytest.mark.parametrize(
    ("coverage", "rate", "prices", "why"),
    [
        (HALF, Figure(1.0, ""), priced(teacher_usd=None), "the teacher is unpriced"),
        (HALF, Figure(1.0, ""), priced(training_usd=None), "before the first one"),
        (Figure(None, "open answers"), Figure(1.0, ""), KNOWN, "open answers"),
    ],
)
def test_what_is_unknown_stays_unknown(coverage: Figure, rate: Figure, prices: Prices, why: str) -> None:
    for found in (break_even(coverage, prices), payback(coverage, rate, prices)):
        assert (found.value, found.low, found.high, found.never) == (None, None, None, False)
        assert why in found.basis


def test_without_a_rate_there_is_a_break_even_but_no_payback() -> None:
    unknown = Figure(None, "less than a day")
    assert break_even(HALF, KNOWN).value is not None
    assert "less than a day" in payback(HALF, unknown, KNOWN).basis
    assert priced(teacher_usd=None).avoided(0.5) is None


@given(st.floats(0.01, 1), st.floats(1e-5, 1), st.floats(0.01, 10), st.floats(0.1, 1000))
def test_at_the_break_even_rate_a_day_costs_what_it_avoids(
    coverage: float, teacher: float, hour: float, training: float
) -> None:
    prices = priced(teacher_usd=teacher, training_usd=training, engine_hour=hour, audit_share=0.05)
    rate = break_even(Figure(coverage, ""), prices).value
    assert rate is not None
    assert rate * (prices.avoided(coverage) or 0) == pytest.approx(24 * hour + training / AMORTISED)
    weeks = payback(Figure(coverage, ""), Figure(rate, ""), prices).value
    assert weeks == pytest.approx(AMORTISED / 7, rel=1e-4)
