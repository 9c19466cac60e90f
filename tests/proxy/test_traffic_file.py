import json
import os
from pathlib import Path

import pytest

from proxy.errors import BadInput
from proxy.traffic_file import Row, message_text, read_traffic

ASK = [{"role": "user", "content": "Add a table for two"}]
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}]


def record(**changes: object) -> dict[str, object]:
    return {"messages": ASK, "teacher_output": "done", "teacher_model": "gpt-4o", "gold": None, **changes}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records), encoding="utf-8")
    return path


def read_one(tmp_path: Path, **changes: object) -> Row:
    [row] = read_traffic(write(tmp_path / "t.jsonl", record(**changes)))
    return row


def test_a_text_answer(tmp_path: Path) -> None:
    assert read_one(tmp_path) == Row(tuple(ASK), "done", None, "gpt-4o", None)


def test_rows_keep_their_order_and_a_missing_last_newline_is_fine(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", record(teacher_output="a"), record(teacher_output="b"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [row.answer for row in read_traffic(path)] == ["a", "b"]


def test_a_unicode_line_separator_inside_a_text_does_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(record(teacher_output="a\u2028b"), ensure_ascii=False), encoding="utf-8")
    assert read_traffic(path)[0].answer == "a\u2028b"


CALL = {"name": "book", "arguments": {"seats": 2}}
OPENAI = {"id": "call_7", "type": "function", "function": {"name": "book", "arguments": '{"seats":2}'}}


MESSAGE = {"content": None, "tool_calls": [OPENAI]}


@pytest.mark.parametrize("output", [[CALL], CALL, [OPENAI], MESSAGE, json.dumps([CALL])])
def test_every_spelling_of_a_tool_call_is_read_as_the_same_call(tmp_path: Path, output: object) -> None:
    row = read_one(tmp_path, teacher_output=output, tools=TOOLS)
    assert row.answer is None
    assert row.tool_calls is not None
    assert [call["function"] for call in row.tool_calls] == [{"name": "book", "arguments": '{"seats":2}'}]
    assert row.tool_calls[0]["type"] == "function"
    assert row.tool_calls[0]["id"].startswith("call_")


def test_missing_ids_differ_between_calls_and_agree_between_readings(tmp_path: Path) -> None:
    first = read_one(tmp_path, teacher_output=[CALL, CALL], tools=TOOLS)
    assert first == read_one(tmp_path, teacher_output=[CALL, CALL], tools=TOOLS)
    assert first.tool_calls is not None
    assert len({call["id"] for call in first.tool_calls}) == 2


def test_a_message_with_text_and_calls_keeps_both(tmp_path: Path) -> None:
    row = read_one(tmp_path, teacher_output={"content": "Booking.", "tool_calls": [OPENAI]}, tools=TOOLS)
    assert (row.answer, row.tool_calls) == ("Booking.", (OPENAI,))


@pytest.mark.parametrize(
    ("text", "tools"), [(json.dumps([CALL]), None), ("[1, 2]", TOOLS), ("[]", TOOLS), ("hi", TOOLS)]
)
def test_text_that_is_no_tool_call_stays_text(tmp_path: Path, text: str, tools: object) -> None:
    row = read_one(tmp_path, teacher_output=text, tools=tools)
    assert (row.answer, row.tool_calls) == (text, None)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ([1], "not a JSON object"),
        (record(messages=[]), "messages is not a list of objects"),
        (record(messages="hi"), "messages is not a list of objects"),
        (record(messages=[{"content": "hi"}]), "no role"),
        (record(messages=[{"role": "user", "content": 3}]), "neither text nor a list"),
        (record(messages=[{"role": "assistant", "tool_calls": [{"id": "a"}]}]), "no function name"),
        (record(teacher_model=None), "teacher_model is missing"),
        (record(teacher_output=None), "teacher_output is no answer"),
        (record(teacher_output=[]), "teacher_output is no answer"),
        (record(teacher_output={"content": None}), "teacher_output is no answer"),
        (record(teacher_output=[{"arguments": {}}]), "no function name"),
        (record(tools={"a": 1}), "tools is not a list of objects"),
    ],
)
def test_a_broken_row_names_file_line_and_reason(tmp_path: Path, broken: object, reason: str) -> None:
    path = write(tmp_path / "t.jsonl", record(), broken, record())
    with pytest.raises(BadInput, match=reason) as caught:
        read_traffic(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [b"{", b"", b"\xff\xfe", b"\r"])
def test_a_line_that_is_no_json_is_an_error_too(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "t.jsonl", record())
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(BadInput, match="line 2: not valid JSON"):
        read_traffic(path)


def test_missing_empty_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name, reason in (("none.jsonl", "cannot be read"), ("empty.jsonl", "is empty"), (".", "cannot be read")):
        with pytest.raises(BadInput, match=reason):
            read_traffic(tmp_path / name)


def test_message_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert message_text({"content": parts}) == "ab"
    assert message_text({"content": None}) == ""
    assert message_text({"content": [*parts, {"type": "image_url", "image_url": {}}]}) is None


@pytest.mark.skipif("STILLROOM_DATA" not in os.environ, reason="STILLROOM_DATA names no folder of recorded traffic")
def test_recorded_traffic_is_read_whole() -> None:
    for path in sorted(Path(os.environ["STILLROOM_DATA"]).glob("*/train.jsonl")):
        assert len(read_traffic(path)) == path.read_bytes().count(b"\n")
