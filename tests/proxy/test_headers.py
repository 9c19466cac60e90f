import pytest

from proxy.headers import header, without

HEADERS = [(b"X-A", b"1"), (b"x-b", b"2"), (b"x-a", b"3")]


@pytest.mark.parametrize(("name", "value"), [(b"x-a", b"1"), (b"x-b", b"2"), (b"x-c", None)])
def test_the_first_of_a_name_counts_whatever_its_case(name: bytes, value: bytes | None) -> None:
    assert header(iter(HEADERS), name) == value


def test_all_of_a_name_are_left_out_and_the_others_keep_their_order() -> None:
    assert without(iter(HEADERS), b"x-a") == [(b"x-b", b"2")]
    assert without(HEADERS, b"x-c") == HEADERS
