import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.doubt import doubtful, recorded_margin
from proxy.logprobs import UNLIKELY, Position, packed
from tests.distiller.test_curate import row


def position(token: str, own: float, *others: float) -> Position:
    """With others in its place, by their probabilities; the token itself is reported too where there are any."""
    top = [(f"other {place}".encode(), math.log(one)) for place, one in enumerate(others)]
    return Position(token.encode(), math.log(own), tuple([*top, (token.encode(), math.log(own))] if top else ()))


def told(number: int, *positions: Position, answer: str = "billing") -> Recorded:
    return replace(row(number, answer=answer), logprobs=packed(positions))


@pytest.mark.parametrize(
    ("positions", "margin"),
    [
        ([position("a", 0.9, 0.1), position("b", 0.5, 0.3, 0.1)], 0.2),
        ([position("a", 0.2, 0.7)], -0.5),  # Another one was likelier than what was drawn.
        ([position("a", 0.8)], 0.6),
        ([position("a", 0.9, 0.05), Position(b"", math.log(0.5), ())], 0.85),  # The end of the turn is no text.
        ([Position(b"a", 0.0, ((b"a", 0.0), (b"b", UNLIKELY)))], 1.0),
        ([], 1.0),
    ],
)
def test_the_margin_is_that_of_the_least_sure_token(positions: list[Position], margin: float) -> None:
    assert recorded_margin(told(1, *positions)) == pytest.approx(margin, abs=2e-3)  # Kept in 16 bits.


def test_without_log_probabilities_or_with_damaged_ones_nothing_is_in_doubt() -> None:
    assert recorded_margin(row(1)) == recorded_margin(replace(row(1), logprobs=b"\x01junk")) == 1.0


def test_the_most_in_doubt_come_first_and_only_where_answers_have_a_form() -> None:
    rows = [told(place, position("a", own, 1 - own), answer='{"a": 1}') for place, own in enumerate((0.95, 0.55, 0.51))]
    found = doubtful(rows, "json", {}, 0.2)
    assert [one.exchange_id for one, _ in found] == ["e0002", "e0001"]
    assert [margin for _, margin in found] == pytest.approx([0.02, 0.1], abs=2e-3)
    assert doubtful(rows, "exact", {}, 0.2) == doubtful(rows, "judge", {}, 0.2) == []


def test_labels_that_rows_like_them_contradict_are_in_doubt() -> None:
    kinds = {"stop": "the red lamp number {} shines bright", "go": "a green tree stands there, {} metres tall"}
    rows = [
        row(2 * n + place, text.format(n), answer)
        for n in range(30)
        for place, (answer, text) in enumerate(kinds.items())
    ]
    rows[10] = replace(rows[10], answer="go" if rows[10].answer == "stop" else "stop")
    found = doubtful(rows, "label", {}, 0.2)
    assert [one.exchange_id for one, _ in found] == [rows[10].exchange_id]
    assert found[0][1] < 0
    assert doubtful(rows, "json", {}, 0.2) == []


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.floats(-1, 1))
def test_doubt_is_below_the_margin_and_in_order(chances: list[float], margin: float) -> None:
    rows = [told(place, position("a", own)) for place, own in enumerate(chances)]
    found = [one for _, one in doubtful(rows, "json", {}, margin)]
    assert found == sorted(found)
    assert len(found) == sum(recorded_margin(one) < margin for one in rows)
    assert all(-1 <= recorded_margin(one) <= 1 for one in rows)
