import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.fields import Copied, classes, copied_fields, put_together, taken_apart
from distiller.writing import ABSENT

scalars = st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
leaves = scalars | st.lists(scalars | st.dictionaries(st.sampled_from(["text", "type"]), scalars), max_size=3)


def fields(*values, plain=False):
    return copied_fields(("key",), [(text, json.dumps(leaf, ensure_ascii=False)) for text, leaf in values], plain)


def test_a_leaf_that_stands_in_the_text_is_copied():
    assert fields(("call Ann", "Ann"), ("call Bo", "Bo")) == (Copied(("key",), "", "", False, False, ABSENT),)


@pytest.mark.parametrize(
    "values",
    [
        [("is it true", True)],
        [("london", "on")],
        [("call Ann", ["Ann", True])],
        [("call Ann", "Ann"), ("call", "Bo")],
        [("call", None), ("call", [])],
        [("Ann", [{"text": "Ann"}, "Ann"])],
    ],
)
def test_other_leaves_are_not(values):
    assert fields(*values) == ()


def test_one_value_in_ten_may_be_no_copy():
    assert fields(*[("call Ann", "Ann")] * 9, ("call", "Bo"))
    assert not fields(*[("call Ann", "Ann")] * 8, ("call", "Bo"))


def test_the_majority_says_how_copies_are_written():
    (field,) = fields(
        ("4 or 5", [4]), ("4 or 5", [4, 5]), ("4", [4]), ("4", 4), ("none", []), ("none", []), ("none", None)
    )
    assert (field.number, field.listed, field.nothing) == (True, True, "[]")
    (field,) = copied_fields((), [("call Ann", '"Ann"')], plain=True)
    assert field.nothing == '""'


def test_objects_that_were_seen_once_are_no_field():
    who, where = [{"text": "Ann", "type": "who"}], [{"text": "Rome", "type": "where"}]
    (field,) = fields(*[("Ann in Rome", who)] * 2, ("Ann in Rome", where))
    assert (field.member, field.element, field.listed) == ("text", '{"text": null, "type": "who"}', True)


@given(leaves, st.sampled_from(["", "text"]))
def test_what_is_taken_apart_is_put_together_again(leaf, member):
    pieces = taken_apart(leaf, member)
    for index, (element, piece) in enumerate(pieces or ()):
        original = leaf[index] if isinstance(leaf, list) else leaf
        number = isinstance(original, int | float)
        assert put_together(Copied((), member, element, number, False, ABSENT), piece) == [original]


@pytest.mark.parametrize("piece", ["four", "", "true", "NaN", "1e999", "[1]", '"1"'])
def test_what_is_no_number_is_no_value(piece):
    assert put_together(Copied((), "", "", True, False, ABSENT), piece) == []


def test_values_seen_once_or_beyond_the_most_common_are_no_classes():
    assert classes(["1", "1", "2"], plain=False) == {"1": "1"}
    many = [str(number) for number in range(300) for _ in range(2)]
    assert len(classes(many, plain=False)) == 200


def test_spellings_of_a_label_are_one_class():
    assert classes(['"Bug."', '"bug"', '"bug"', '"odd"'], plain=True) == {'"bug"': '"bug"', '"Bug."': '"bug"'}
    assert classes(['"Bug."', '"bug"', '"bug"'], plain=False) == {'"bug"': '"bug"'}
