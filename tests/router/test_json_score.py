import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.json_score import JsonAgreement, json_agreement, parse, resolve, unordered

scalars = st.none() | st.booleans() | st.integers(-50, 50) | st.floats(-9, 9) | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=3)
)
containers = st.lists(values, max_size=4) | st.dictionaries(st.sampled_from("ab"), values, max_size=4)
declared = st.sets(st.sampled_from(["", "a", "[]", "a[]", "[].a", "a[].b", "b"]))
SLOW = settings(deadline=None)  # The first pairing loads scipy.


@given(containers, declared)
def test_the_same_json_agrees_fully_however_it_is_printed(value: Any, sets: set[str]) -> None:
    printed = json.dumps(value, indent=2, ensure_ascii=False)
    assert json_agreement(json.dumps(value), printed, sets) == JsonAgreement(1.0, 0, 0, 0)


@SLOW
@given(containers, containers, declared)
def test_agreement_is_symmetric_and_full_only_without_a_difference(one: Any, other: Any, sets: set[str]) -> None:
    found = json_agreement(json.dumps(one), json.dumps(other), sets)
    back = json_agreement(json.dumps(other), json.dumps(one), sets)
    assert 0 <= found.f1 <= 1
    assert (found.f1 == 1) == (found.missing == found.invented == found.wrong == 0)
    assert back == JsonAgreement(found.f1, found.invented, found.missing, found.wrong)


def shuffled(value: Any, randomly: random.Random) -> Any:
    """The value with each of its arrays in another order."""
    if isinstance(value, dict):
        return {key: shuffled(member, randomly) for key, member in value.items()}
    if isinstance(value, list):
        return randomly.sample([shuffled(member, randomly) for member in value], len(value))
    return value


def all_sets(value: Any, path: str = "") -> set[str]:
    """The path of every array there is."""
    if isinstance(value, dict):
        return set().union(*(all_sets(member, f"{path}.{key}" if path else key) for key, member in value.items()))
    return {path}.union(*(all_sets(member, f"{path}[]") for member in value)) if isinstance(value, list) else set()


@SLOW
@given(containers, containers, st.randoms(use_true_random=False))
def test_sets_have_no_order(one: Any, other: Any, randomly: random.Random) -> None:
    sets = all_sets(one) | all_sets(other)
    assert json_agreement(json.dumps(one), json.dumps(shuffled(one, randomly)), sets).f1 == 1
    moved = json_agreement(json.dumps(shuffled(one, randomly)), json.dumps(shuffled(other, randomly)), sets)
    assert moved == json_agreement(json.dumps(one), json.dumps(other), sets)


@SLOW
@given(containers, containers)
def test_a_set_is_never_judged_harder_than_a_list(one: Any, other: Any) -> None:
    pair = json.dumps(one), json.dumps(other)
    assert json_agreement(*pair, all_sets(one) | all_sets(other)).f1 >= json_agreement(*pair).f1 - 1e-12


def test_each_kind_of_difference_is_counted() -> None:
    teacher = '{"id": 7, "tags": ["a", "b"], "open": true, "note": null}'
    candidate = '{"id": 7.0, "tags": ["a", "c"], "open": 1, "extra": {}}'
    assert json_agreement(teacher, candidate) == JsonAgreement(f1=2 * 2 / 10, missing=1, invented=1, wrong=2)


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ('{"a": 1}', '{"a": 1.0}', 1.0), ('{"a": 1}', '{"a": true}', 0.0), ('{"a": 1}', '{"a": "1"}', 0.0),
        ('{"a": 0}', '{"a": null}', 0.0), ('{"a": " x\uff11 "}', '{"a": "x1"}', 1.0), ('{"a": {}}', '{"a": []}', 0.0),
        ("{}", "{}", 1.0), ("{}", "[]", 0.0), ("[1, 2]", "[2, 1]", 0.0), ('{"0": 1}', "[1]", 0.0),
        ('{"a": 1, "b": 2}', '{"a": 1}', 2 / 3), (f'{{"a": {2**53}}}', f'{{"a": {2**53 + 1}}}', 0.0),
    ],
)  # fmt: skip
def test_leaves_are_typed_and_have_a_place(one: str, other: str, verdict: float) -> None:
    assert json_agreement(one, other).f1 == pytest.approx(verdict)


@pytest.mark.parametrize(
    ("sets", "one", "other", "expected"),
    [
        ({""}, [1, 2, 2], [2, 1, 2], JsonAgreement(1.0, 0, 0, 0)),
        ({""}, [1, 2, 2], [2, 1, 1], JsonAgreement(4 / 6, 0, 0, 1)),
        ({""}, [1, None], [None], JsonAgreement(2 / 3, 1, 0, 0)),
        ({"a"}, {"a": [], "b": 1}, {"a": [1], "b": 1}, JsonAgreement(0.5, 1, 1, 0)),
        ({"a"}, {"a": [1]}, {"a": {"x": 1}}, JsonAgreement(0.0, 1, 1, 0)),
        # The second of each side is worth most to the first of the other: taken one by one, less would agree.
        ({"a"}, {"a": [{"x": 1, "y": 1, "z": 1}, {"x": 1, "y": 1, "z": 2}]}, {"a": [{"x": 1, "y": 1, "z": 3},
          {"x": 2, "y": 1, "z": 1}]}, JsonAgreement(8 / 12, 0, 0, 2)),
        ({"o", "o[].t"}, {"o": [{"n": 1, "t": [1, 2]}, {"n": 2, "t": [3]}]}, {"o": [{"n": 2, "t": [3]},
          {"n": 1, "t": [2, 1]}]}, JsonAgreement(1.0, 0, 0, 0)),
        ({"o"}, {"o": [{"t": [1, 2]}]}, {"o": [{"t": [2, 1]}]}, JsonAgreement(0.0, 0, 0, 2)),
        ({"o[].t"}, {"o": [{"t": [1, 2]}]}, {"o": [{"t": [2, 1]}]}, JsonAgreement(1.0, 0, 0, 0)),
        ({"[][]"}, [[[1, 2]]], [[[2, 1]]], JsonAgreement(1.0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_sets_by_their_path(sets: set[str], one: Any, other: Any, expected: JsonAgreement) -> None:
    assert json_agreement(json.dumps(one), json.dumps(other), sets) == expected


BROKEN = [
    "", "plain", '{"a": 1', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1, "a": 1}', '[{"x": 1, "x": 2}]',
    '```json\n{"a": 1}\n```', '{"a": 1} done', "[" * 100_000, "[" + "1" * 5_000 + "]", "7", "true", '"word"',
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_json_object_or_array_scores_nothing(broken: str) -> None:
    assert parse(broken) is None
    assert json_agreement('{"a": 1}', broken) == JsonAgreement(0.0, missing=1, invented=0, wrong=0)
    assert json_agreement(broken, '{"a": 1}') == JsonAgreement(0.0, missing=0, invented=1, wrong=0)
    assert json_agreement(broken, broken).f1 == 0


@pytest.mark.parametrize("sets", [set(), {"[]" * depth for depth in range(900)}])
def test_deep_and_wide_json_is_compared(sets: set[str]) -> None:
    deep = "[" * 900 + ",".join("1" * 20_000) + "]" * 900
    if not sets:
        assert json_agreement(deep, deep).f1 == 1
    few = "[" * 90 + "1, 2" + "]" * 90
    assert json_agreement(few, few, sets).f1 == 1


def test_sets_too_large_to_pair_still_match_what_is_equal() -> None:
    one, other = ([{"id": i, "side": side} for i in range(5_000)] + [7] for side in "ab")
    found = json_agreement(json.dumps(one), json.dumps(other[::-1]), {""})
    assert found == JsonAgreement(2 / 20_002, missing=10_000, invented=10_000, wrong=0)
    assert json_agreement(json.dumps(one), json.dumps(one[::-1]), {""}).f1 == 1


SCHEMA = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
        "steps": {"type": "array", "items": {"type": "string"}},
        "orders": {"type": "array", "items": {"$ref": "#/$defs/order"}},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": True}]},
    },
    "$defs": {"order": {"properties": {"lines": {"type": "array", "uniqueItems": True}}}},
}


def test_a_schema_says_which_arrays_are_sets() -> None:
    assert unordered(SCHEMA) == {"tags", "orders[].lines", "maybe"}


def test_a_schema_that_refers_to_itself_ends() -> None:
    itself = {"properties": {"next": {"$ref": "#"}, "tags": {"uniqueItems": True}}}
    assert {"tags", "next.tags", "next.next.tags"} <= unordered(itself)
    assert resolve({"$ref": "#/a"}, {"a": {"$ref": "#/a"}}) == {}


@pytest.mark.parametrize(
    "odd", [None, 3, [], {"$ref": 3}, {"$ref": "#/no/where"}, {"$ref": "http://a/b"}, {"properties": 3, "anyOf": 4}]
)
def test_an_odd_schema_calls_nothing_a_set(odd: object) -> None:
    assert unordered(odd) == frozenset()
