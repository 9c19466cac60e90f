"""Of tests/conformance what is quick and test_relay.py does not compare; and the comparing itself."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.calls import all_calls
from tests.conformance.clients import openai_python
from tests.conformance.compare import compare
from tests.conformance.upstreams import replay_teacher, stillroom

CALLS = {
    "logprobs, stream", "unicode, stream", "content parts", "tool message, stream", "stream of a wrong type",
    "stream_options of a wrong type", "upstream 503, stream", "upstream 500, one retry", "stream, the client leaves",
    "the client does not wait", "the client does not wait, stream", "five over one connection",
    "eight streams at once", "completions, stream", "responses, stream", "one model", "no such model", "file upload",
    "delete a file", "moderations",
}  # fmt: skip


def test_a_client_cannot_tell_the_proxy_from_the_teacher(tmp_path: Path) -> None:
    with replay_teacher(tmp_path) as teacher, stillroom(tmp_path, teacher) as (url, captured):
        direct, through = (openai_python(asked, tmp_path, CALLS, sys.executable) for asked in (teacher, url))
    found = {name: compare([direct[name]], through[name]) for name in CALLS}
    assert {name: one.differences for name, one in found.items() if one.differences} == {}
    assert {one.outcome for one in found.values()} == {"passed", "failed"}
    assert captured.requests == len(CALLS) + 4 + 7 + 1  # five, eight, and one that is tried again


def test_every_call_has_a_name_of_its_own() -> None:
    names = [call.name for call in all_calls()]
    assert len(names) == len(set(names)) > len(CALLS)


CHUNKS = [
    {"id": "chatcmpl-12345678", "created": 1, "delta": "a"},
    {"id": "chatcmpl-12345678", "created": 1, "delta": "b"},
]
RESULT: dict[str, Any] = {"status": 200, "headers": {"date": "x", "x-limit": "9"}, "chunks": CHUNKS}


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"status": 201}, ".status"),
        ({"headers": {"date": "x"}}, ".headers.x-limit"),
        ({"headers": {**RESULT["headers"], "x-new": "1"}}, ".headers.x-new"),
        ({"chunks": CHUNKS[::-1]}, ".chunks.0.delta"),
        ({"chunks": CHUNKS[:1]}, ".chunks.length"),
        ({"chunks": [dict(reversed(CHUNKS[0].items())), CHUNKS[1]]}, ".chunks.0.keys"),
        ({"raised": "APIError"}, ".raised"),
    ],
)
def test_a_difference_is_found(changed: dict[str, Any], where: str) -> None:
    assert where in compare([RESULT, RESULT], {**RESULT, **changed}).differences


def test_what_is_new_each_time_is_no_difference() -> None:
    headers = {"date": "y", "x-limit": "9", "connection": "close", "x-stillroom-exchange": "01"}
    chunks = [{**chunk, "id": "chatcmpl-87654321", "created": 2} for chunk in CHUNKS]
    assert compare([RESULT], {**RESULT, "headers": headers, "chunks": chunks}).differences == {}


def test_what_the_upstream_does_differently_by_itself_is_excluded() -> None:
    found = compare([RESULT, {**RESULT, "chunks": CHUNKS[:1]}], {**RESULT, "chunks": [*CHUNKS, *CHUNKS], "status": 500})
    assert set(found.differences) == {".status"}
    assert ".chunks.length" in found.excluded


def test_how_several_choices_interleave_is_no_difference_but_the_order_within_one_is() -> None:
    one, two = ([{"choices": [{"index": index, "delta": text}]} for text in "ab"] for index in (0, 1))
    usage: dict[str, Any] = {"choices": [], "usage": 4}
    direct = {**RESULT, "chunks": [one[0], two[0], one[1], two[1], usage]}
    assert compare([direct], {**RESULT, "chunks": [two[0], one[0], one[1], two[1], usage]}).differences == {}
    swapped = compare([direct], {**RESULT, "chunks": [one[1], two[0], one[0], two[1], usage]})
    assert set(swapped.differences) == {f".chunks.{place}.choices.0.delta" for place in (0, 1)}
