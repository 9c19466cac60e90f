import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.splice import body_object, items_at, object_at, spliced, value_at, whole_object

KEYS = st.sampled_from(["usage", "größe", "a\n\\", '"', ""]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=st.dictionaries(KEYS, JSON, max_size=5), indent=st.sampled_from([None, 2, "\t"]), prefix=st.text())
def test_members_are_those_of_the_object_where_they_stand(value: dict[str, Any], indent: Any, prefix: str) -> None:
    raw = json.dumps(value, indent=indent, ensure_ascii=False)
    members, close = object_at(prefix + raw, len(prefix))
    assert {member.key: member.value for member in members} == value
    assert [json.loads((prefix + raw)[member.at : member.end]) for member in members] == list(value.values())
    assert close == len(prefix + raw) - 1


@settings(deadline=None)
@given(value=st.dictionaries(KEYS, JSON, min_size=1, max_size=5), new=JSON, pick=st.integers(0, 4))
def test_a_spliced_member_is_all_that_changes(value: dict[str, Any], new: Any, pick: int) -> None:
    raw = json.dumps(value).encode()
    members, _ = whole_object(raw.decode(), 0)
    member = members[pick % len(members)]
    changed = spliced(raw, member.at, member.end, json.dumps(new).encode())
    assert json.loads(changed) == value | {member.key: new}
    assert changed.startswith(raw[: member.at])
    assert changed.endswith(raw[member.end :])


@settings(deadline=None)
@given(scraps=st.lists(st.sampled_from(['"a"', ":", "true", ",", "{", "}", "[1]", " ", '"', "\\", "\n", "é"])))
def test_what_json_does_not_accept_is_no_object(scraps: list[str]) -> None:
    text = "".join(scraps)
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        assert {member.key: member.value for member in whole_object(text, 0)[0]} == value
    else:
        with pytest.raises(ValueError, match=r"JSON|Expecting|Unterminated|Invalid"):
            whole_object(text, 0)


def test_of_a_key_given_twice_both_are_told() -> None:
    members, _ = whole_object('{"a": 1, "\\u0061": 2} ', 0)
    assert [(member.key, member.value) for member in members] == [("a", 1), ("a", 2)]


def test_what_follows_is_allowed_where_the_object_is_inside() -> None:
    assert object_at('[{"a":1},2]', 1)[1] == 7
    with pytest.raises(ValueError, match="more than one"):
        whole_object('{"a":1},2', 0)


def test_too_deep_nesting_is_an_error_of_its_own() -> None:
    with pytest.raises(RecursionError):
        object_at('{"a":' + "[" * 200_000, 0)


@settings(deadline=None)
@given(value=st.lists(JSON, max_size=5), indent=st.sampled_from([None, 2, "\t"]), prefix=st.text())
def test_items_are_those_of_the_array(value: list[Any], indent: Any, prefix: str) -> None:
    raw = json.dumps(value, indent=indent)
    assert items_at(prefix + raw + ",", len(prefix), value_at) == (value, len(prefix + raw))


@pytest.mark.parametrize("text", ["", "{}", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1}"])
def test_what_is_no_array_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        items_at(text, 0, value_at)


def test_a_key_can_have_a_reader_of_its_own() -> None:
    members, _ = whole_object('{"a":{"b":1},"c":2}', 0, {"a": lambda text, at: (text[at : at + 7], at + 7)})
    assert [(member.key, member.value, member.end) for member in members] == [("a", '{"b":1}', 12), ("c", 2, 18)]


def test_a_bodys_positions_are_its_bytes() -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        body = mark + '{"näme": "ü", "model": "m"}'.encode()
        members, close = body_object(body)
        assert body[members[1].at : members[1].end] == b'"m"'
        assert body[close:] == b"}"
    with pytest.raises(ValueError, match="utf-8"):
        body_object(b'{"model": "\xff"}')
