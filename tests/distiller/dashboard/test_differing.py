from hypothesis import given
from hypothesis import strategies as st

from distiller.dashboard.differing import GONE, LONGEST, MOST_WORDS, NEW, SAME, Difference, Piece, difference

TEXTS = st.text(alphabet=st.sampled_from("ab .<>&\n\u00e9\u4e2d"), max_size=40)


def side(found: Difference, kind: str) -> str:
    return "".join(piece.text for piece in found.pieces if piece.kind in (SAME, kind))


def test_words_that_changed_are_named_where_they_stand() -> None:
    found = difference("Refund the order today.", "Ship the order tomorrow.")
    assert found.pieces == (
        Piece(GONE, "Refund"), Piece(NEW, "Ship"), Piece(SAME, " the order "), Piece(GONE, "today"),
        Piece(NEW, "tomorrow"), Piece(SAME, "."),
    )  # fmt: skip
    assert not found.same
    assert difference("a b", "a b").same
    assert difference("", "") == Difference((), 0)


@given(TEXTS, TEXTS)
def test_both_texts_can_be_put_together_again(first: str, second: str) -> None:
    found = difference(first, second)
    assert (side(found, GONE), side(found, NEW), found.left_out) == (first, second, 0)
    assert found.same == (first == second)


def test_of_long_texts_the_beginning_is_compared_and_the_rest_told() -> None:
    found = difference("x" * (LONGEST + 5), "y")
    assert (len(side(found, GONE)), found.left_out) == (LONGEST, 5)
    many = ". " * MOST_WORDS
    found = difference(many, many)
    assert (side(found, GONE), found.left_out) == (many[:MOST_WORDS], 2 * MOST_WORDS)
