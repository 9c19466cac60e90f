"""Against Python's own regular expressions, which look for one pattern after the other."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.glance import Glance

PATTERNS = (rb"(?i)passw|pwd", rb"A[KS]IA", rb"\x00", rb"[0-9]{3}-[0-9]")
WORDS = [b"PassW", b"pwd", b"AKIA", b"akia", b"\0", b"012-3", b"012-", b"\xff", b"a", b" "]


@given(parts=st.lists(st.sampled_from(WORDS), max_size=6), padding=st.integers(0, 100))
def test_sees_what_any_of_the_patterns_matches(parts: list[bytes], padding: int) -> None:
    data = b"x" * padding + b"".join(parts)
    expected = any(re.search(pattern, data) for pattern in PATTERNS)
    assert Glance(PATTERNS)(data) is Glance(PATTERNS)(bytearray(data)) is expected


def test_sees_a_word_at_either_end_of_a_large_text() -> None:
    glance = Glance(PATTERNS)
    assert not glance(b"x" * 10_000_000)
    assert glance(b"pwd" + b"x" * 10_000_000)
    assert glance(b"x" * 10_000_000 + b"pwd")


@pytest.mark.parametrize("data", [b"", bytearray()])
def test_nothing_is_in_nothing(data: bytes) -> None:
    assert not Glance(PATTERNS)(data)
