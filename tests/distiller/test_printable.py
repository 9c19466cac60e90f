from hypothesis import given
from hypothesis import strategies as st

from distiller.printable import printable


@given(st.text(), st.integers(1, 50))
def test_nothing_in_it_moves_the_cursor(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) == min(len(text), most)


def test_what_prints_stays() -> None:
    assert printable("größer \x1b[2Jx\n") == "größer ?[2Jx?"
    assert printable("abcdef", 4) == "abc…"
