import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.said import Call, Said
from router.tools_score import by_schema, callable_as_said, tools_agreement

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "default": 1},
        "unit": {"type": "string", "enum": ["celsius", "Fahrenheit"], "default": "celsius"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "at": {"$ref": "#/$defs/point"},
        "limit": {"type": ["number", "null"]},
    },
    "required": ["city"],
    "$defs": {
        "point": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0}}}
    },
}
REQUEST = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}, {"type": "web"}, 3]
}
NOTHING = Said("Which city?")
SLOW = settings(deadline=None)  # The first pairing loads scipy.


def calls(*arguments: dict[str, Any] | None, name: str = "weather") -> Said:
    return Said(None, tuple(Call(name, one) for one in arguments))


def weather(**arguments: Any) -> Said:
    return calls({"city": "Bonn", **arguments})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (weather(days=5), weather(days=5.0)), (weather(days=5), weather(days="5")), (weather(), weather(days=1)),
        (weather(), weather(unit="celsius", days=1)), (weather(unit="fahrenheit"), weather(unit="Fahrenheit")),
        (weather(exact=True), weather(exact="true")), (weather(tags=["a", "b"]), weather(tags=["b", "a"])),
        (weather(at={"x": 1}), weather(at={"x": "1.0", "y": 0})), (weather(limit="2.5"), weather(limit=2.5)),
        (calls({"city": 7}), calls({"city": "7"})), (calls({"city": 7.0}), calls({"city": "7"})),
        (weather(tags=[1]), weather(tags=["1"])), (NOTHING, Said(None)),
    ],
)  # fmt: skip
def test_what_a_tool_would_take_as_the_same(one: Said, other: Said) -> None:
    assert tools_agreement(REQUEST, one, other) == tools_agreement(REQUEST, other, one) == 1


@pytest.mark.parametrize(
    ("teacher", "candidate", "verdict"),
    [
        # Defaults count too: city, days and unit are compared.
        (weather(), calls({"city": "bonn"}), 2 / 3), (weather(), weather(days=2), 2 / 3),
        (weather(), weather(invented=1), 6 / 7), (weather(days="five"), weather(days=5), 2 / 3),
        (weather(limit=None), weather(limit=0), 3 / 4), (weather(unit="kelvin"), weather(unit="Kelvin"), 2 / 3),
        (weather(), NOTHING, 0.0), (weather(), calls({"city": "Bonn"}, name="forecast"), 0.0),
        (weather(), calls({"city": "Bonn"}, {"city": "Rome"}), 2 / 3), (weather(), calls(None), 0.0),
        (calls(None), calls(None), 0.0),
        (calls({"city": "Bonn"}, {"city": "Rome"}), calls({"city": "Rome"}, {"city": "Bonn"}), 1.0),
        (weather(tags=["a", "b"]), weather(tags=["b", "c"]), 4 / 5),
    ],
)  # fmt: skip
def test_how_far_calls_agree(teacher: Said, candidate: Said, verdict: float) -> None:
    assert tools_agreement(REQUEST, teacher, candidate) == pytest.approx(verdict)
    assert tools_agreement(REQUEST, candidate, teacher) == pytest.approx(verdict)


def test_the_text_beside_calls_is_not_compared() -> None:
    assert tools_agreement(REQUEST, Said("I look it up.", weather().tool_calls), weather()) == 1


@pytest.mark.parametrize(
    "request_body", [{}, {"tools": None}, {"tools": {}}, {"tools": [{"function": {"name": "weather"}}]}]
)
def test_without_a_schema_values_are_compared_as_they_are(request_body: dict[str, Any]) -> None:
    assert tools_agreement(request_body, weather(days=5), weather(days=5.0)) == 1
    assert tools_agreement(request_body, weather(days=5), weather(days="5")) == 0.5
    assert tools_agreement(request_body, calls({}), calls({})) == 1


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
)
arguments = st.dictionaries(
    st.sampled_from(["city", "days", "unit", "exact", "tags", "at", "limit", "more"]),
    scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from("xyz"), scalars, max_size=3),
    max_size=4,
)
saids = st.builds(
    Said,
    st.none() | st.text(max_size=4),
    st.lists(st.builds(Call, st.sampled_from(["weather", "other"]), arguments), max_size=4).map(tuple),
)


@SLOW
@given(saids, saids)
def test_a_verdict_is_in_the_unit_interval_symmetric_and_full_for_the_same(one: Said, other: Said) -> None:
    verdict = tools_agreement(REQUEST, one, other)
    assert 0 <= verdict <= 1
    assert tools_agreement(REQUEST, other, one) == pytest.approx(verdict)
    assert tools_agreement(REQUEST, one, one) == pytest.approx(1)


@SLOW
@given(saids, saids, st.randoms(use_true_random=False))
def test_parallel_calls_have_no_order(one: Said, other: Said, randomly: random.Random) -> None:
    mixed = Said(other.text, tuple(randomly.sample(other.tool_calls, len(other.tool_calls))))
    assert tools_agreement(REQUEST, one, mixed) == pytest.approx(tools_agreement(REQUEST, one, other))


@given(arguments)
def test_what_is_read_once_is_read(given_arguments: dict[str, Any]) -> None:
    read = by_schema(given_arguments, PARAMETERS, PARAMETERS)
    assert by_schema(read, PARAMETERS, PARAMETERS) == read


def test_many_calls_and_deep_arguments_are_compared() -> None:
    many = calls(*({"city": str(i)} for i in range(3_000)))
    fewer = Said(None, many.tool_calls[::-1][:2_000])
    assert tools_agreement(REQUEST, many, fewer) == 4_000 / 5_000
    itself = {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {"type": "integer", "default": 3}}}
    request = {"tools": [{"function": {"name": "weather", "parameters": itself}}]}
    deep = calls(json.loads('{"next": ' * 900 + "{}" + "}" * 900))
    assert tools_agreement(request, deep, deep) == 1


@pytest.mark.parametrize(
    ("said", "formed"),
    [
        (weather(), True),
        (calls(None), False),
        (Said(None, (Call("", {}),)), False),
        (NOTHING, True),
        (Said(" "), False),
    ],
)
def test_form(said: Said, formed: bool) -> None:
    assert callable_as_said(said) is formed


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("days", "1_000", "1_000"), ("days", "NaN", "NaN"), ("days", "1e999", "1e999"), ("days", "true", "true"),
        ("days", "[" * 99_999, "[" * 99_999), ("days", "1.5", 1.5), ("days", "9" * 400, int("9" * 400)),
        ("city", int("9" * 400), "9" * 400), ("city", 1e300, "1e+300"), ("city", -0.5, "-0.5"), ("exact", "yes", "yes"),
        ("limit", None, None), ("unit", " CELSIUS ", "celsius"), ("more", "5", "5"),
    ],
)  # fmt: skip
def test_only_what_fits_is_changed(key: str, value: Any, read: Any) -> None:
    assert by_schema({key: value}, PARAMETERS, PARAMETERS)[key] == read
