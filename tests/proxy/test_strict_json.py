import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.strict_json import read

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


@given(VALUES)
def test_what_has_one_meaning_is_read(value: object) -> None:
    assert read(json.dumps(value)) == value
    assert read(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 1}', "a field is there twice"),
        ('[{"b": {"a": 1, "\\u0061": 2}}]', "a field is there twice"),
        ("NaN", "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ("1e999", "out of range"),
        ("-1e999", "out of range"),
        ("{'a': 1}", "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff", "it is not UTF-8"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_has_not_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(BadInput, match=f"^not JSON: .*{why}"):
        read(text)


def test_nesting_has_an_end() -> None:
    with pytest.raises(BadInput, match="nested too deeply"):
        read("[" * 100_000)
