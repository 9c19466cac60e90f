import json

from hypothesis import given
from hypothesis import strategies as st

from distiller.leaves import ABSENT, MOST_PLACES, closed_leaves, joined, leaves

KEYS = st.sampled_from(["a", "b", "c.d", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=3) | st.lists(VALUES, max_size=3))
def test_an_answer_taken_apart_and_joined_is_the_same(answer: object) -> None:
    assert json.loads(joined(leaves(json.dumps(answer)))) == answer


def test_few_values_make_a_leaf_closed_and_many_leave_it_open() -> None:
    answers = [
        json.dumps({"intent": ["book", "play"][number % 2], "slots": {"city": f"c{number}"} if number % 5 == 0 else {}})
        for number in range(100)
    ]
    shut, others = closed_leaves(answers)
    assert list(shut) == [("intent",), ("slots",)]
    assert others == [("slots", "city")]
    assert shut["intent",][:2] == ['"book"', '"play"']
    assert shut["slots",][:2] == [ABSENT, "{}"]


def test_a_rare_leaf_is_judged_by_the_rows_that_have_it() -> None:
    answers = [json.dumps({"a": 1} | ({"b": number} if number < 4 else {})) for number in range(100)]
    assert closed_leaves(answers)[1] == [("b",)]


def test_answers_that_are_no_json_have_no_leaf() -> None:
    assert leaves("billing") == {}
    assert closed_leaves(["billing", '{"a":1}', '{"a":1}', '{"a":2}'])[0] == {("a",): [ABSENT, "1", "1", "2"]}


def test_too_many_closed_leaves_are_no_choice() -> None:
    answer = json.dumps({f"k{number}": 1 for number in range(MOST_PLACES + 1)})
    shut, others = closed_leaves([answer] * 20)
    assert (shut, len(others)) == ({}, MOST_PLACES + 1)


def test_leaves_that_exclude_each_other_still_make_an_answer() -> None:
    assert json.loads(joined({("a",): "1", ("a", "b"): "2", ("c",): ABSENT})) == {"a": 1}
    assert json.loads(joined({("a", "b"): ABSENT})) == {}
    assert json.loads(joined({(): "[1]", ("a",): "2"})) == [1]
