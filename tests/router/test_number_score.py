import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.number_score import Number, is_number, last_number, number_agreement


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42.0), ("So 3 + 4 makes **7**.", 7.0), ("#### 1,234,567", 1234567.0), ("-3.5", -3.5), ("\u22123", -3.0),
        ("1'000.25", 1000.25), ("1\u202f000\u00a0000", 1e6), ("1.200,50", 1200.5), ("6.02e23", 6.02e23), (".5", 0.5),
        ("12 %", 0.12), ("12 per cent", 0.12), ("$1,200.50", 1200.5), ("-$5", -5.0), ("$-5", -5.0),
        ("\\boxed{42}", 42.0), ("x=5", 5.0), ("+7", 7.0), ("5 on 2024-08-06 at 10:30", 5.0), 
        ("7, of gpt4 and v1.2.3", 7.0), ("1.234", 1.234),
    ],
)  # fmt: skip
def test_the_last_number_is_read(text: str, value: float) -> None:
    found = last_number(text)
    assert found is not None
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "1/2",
        "3-5",
        "3\u20135",
        "10:30",
        "2024-08-06",
        "1,5",
        "1.2.3",
        "v2",
        "5km",
        "\u20135",
        "1e999",
    ],
)
def test_what_can_be_read_in_two_ways_or_none_is_no_number(text: str) -> None:
    assert last_number(text) is None
    assert number_agreement(text, text) == 0


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("5", "5.0", 1), ("1,000", "It is 1000.", 1), ("50%", "0.5", 1), ("50%", "50", 0), ("$5", "5", 1),
        ("$5", "5 USD", 1), ("$5", "\u20ac5", 0), ("1000000", "1000000.5", 1), ("1000000", "1000002", 0),
        ("0", "1e-9", 0),
        ("-5", "5", 0), ("5", "five", 0), ("3 of 4", "4 of 3", 0),
    ],
)  # fmt: skip
def test_agreement(one: str, other: str, verdict: float) -> None:
    assert number_agreement(one, other) == number_agreement(other, one) == verdict


def test_currency_is_kept() -> None:
    assert last_number("\u00a35") == Number(5.0, "GBP")
    assert last_number("JPY 500") == last_number("500\u00a5") == Number(500.0, "JPY")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_agrees_with_itself_however_it_is_printed(value: float) -> None:
    assert number_agreement(repr(value), f"The answer is {value!r}.") == 1
    assert is_number(repr(value))


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert number_agreement(text, text) == float(last_number(text) is not None)


@pytest.mark.parametrize("huge", ["9" * 300_000, "1," * 300_000, "a" * 300_000, "1 " * 100_000, "-" * 300_000])
def test_huge_answers_are_read_too(huge: str) -> None:
    assert number_agreement(huge, huge) == float(huge.endswith("1 "))


@pytest.mark.parametrize(("text", "alone"), [("-$1,200", True), ("12 %", True), ("5 apples", False), ("", False)])
def test_a_number_alone(text: str, alone: bool) -> None:
    assert is_number(text) is alone
