import re
import time

import pytest

from proxy.ids import moment, ulid

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_ten_thousand_are_well_formed_and_distinct() -> None:
    made = {ulid() for _ in range(10_000)}
    assert len(made) == 10_000
    assert all(re.fullmatch(f"[0-7][{_ALPHABET}]{{25}}", one) for one in made)


def test_the_first_ten_characters_are_the_milliseconds_so_that_they_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    one = ulid()
    after = time.time_ns() // 1_000_000
    number = 0
    for character in one[:10]:
        number = number * 32 + _ALPHABET.index(character)
    assert before <= number <= after


def test_an_id_says_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = moment(ulid())
    assert before / 1000 <= made <= time.time_ns() / 1e9
    with pytest.raises(ValueError, match="substring not found"):
        moment("of somebody")
