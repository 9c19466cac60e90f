import base64
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange import Exchange, holds_logprobs
from proxy.logprobs import Position, packed
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor

SECRETS = ("Authorization", "Cookie", "api-key", "X-Api-Key", "Set-Cookie", "proxy-authorization", "x-goog-api-key")


def record(**fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"id": "1", "ts": 1.5, "method": "POST", "path": "/v1/x"} | fields
    line = Exchange(**given).line(Redactor(SECRETS_ONLY))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def body(found: dict[str, Any], side: str) -> bytes:
    text = found[side]
    return base64.b64decode(text) if found[f"{side}_encoding"] == "base64" else text.encode()


@given(request=st.binary() | st.text().map(str.encode), response=st.binary() | st.text().map(str.encode))
def test_bodies_come_back_byte_for_byte(request: bytes, response: bytes) -> None:
    found = record(request=request, response=bytearray(response))
    assert (body(found, "request"), body(found, "response")) == (request, response)
    assert (found["request_bytes"], found["response_bytes"]) == (len(request), len(response))


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("line\nU+2028 \u2028 end".encode(), "line\nU+2028 \u2028 end", "utf-8"),
        (b"", "", "utf-8"),
        (b"a\0b", "YQBi", "base64"),
        (b"\xff", "/w==", "base64"),
        (b"\xed\xa0\x80", "7aCA", "base64"),  # half a surrogate pair
    ],
)
def test_what_text_cannot_hold_is_base64(data: bytes, text: str, encoding: str) -> None:
    found = record(request=data)
    assert (found["request"], found["request_encoding"]) == (text, encoding)


def test_the_teacher_that_was_asked_and_the_language_are_kept() -> None:
    assert [record(teacher="german", lang="de")[key] for key in ("teacher", "lang")] == ["german", "de"]
    assert [record()[key] for key in ("teacher", "lang")] == [None, None]


@given(path=st.text(), query=st.text(), task=st.none() | st.text(), error=st.none() | st.text())
def test_a_line_is_one_line_whatever_the_client_called_things(
    path: str, query: str, task: str | None, error: str | None
) -> None:
    found = record(path=path, query=query, task=task, error=error)
    assert (found["path"], found["query"], found["task_header"], found["error"]) == (path, query, task, error)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("change", [str, str.lower, str.upper])
def test_no_credential_is_ever_kept(name: str, change: Any) -> None:
    headers = [(change(name).encode(), b"s3cret"), (b"User-Agent", b"curl")]
    found = record(request_headers=headers, response_headers=headers)
    assert "s3cret" not in json.dumps(found)
    assert found["request_headers"] == found["response_headers"] == [["User-Agent", "curl"]]


@given(name=st.binary(max_size=20))
def test_headers_nobody_listed_are_left_out(name: bytes) -> None:
    headers = [(b"x-mine-" + name, b"v"), (b"Retry-After", b"v\xe9")]
    assert record(response_headers=headers)["response_headers"] == [["Retry-After", "v\xe9"]]


def test_times_are_utc_to_the_microsecond() -> None:
    assert record(ts=1.25)["ts"] == "1970-01-01T00:00:01.250000+00:00"
    assert record(ts=1.0)["ts"] == "1970-01-01T00:00:01+00:00"


KEY = "sk-proj-" + "Ab3" * 12


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_secret_in_a_body_or_query_is_not_kept(coding: str | None) -> None:
    said = json.dumps({"messages": [{"role": "user", "content": f"my key is {KEY}"}]}).encode()
    data = gzip.compress(said) if coding else said
    headers = [(b"Content-Encoding", coding.encode())] if coding else []
    found = record(request=data, request_headers=headers, response=said, query=f"key={KEY}")
    assert KEY not in json.dumps(found)
    assert json.loads(found["request"])["messages"][0]["content"] == "my key is [SECRET_1]"
    assert found["response"] == found["request"]
    assert (found["request_bytes"], found["response_bytes"]) == (len(data), len(said))


def test_what_is_compressed_and_no_text_stays_as_it_came() -> None:
    data = gzip.compress(b"\xff\xfe\xfd")
    assert body(record(response=data, response_headers=[(b"content-encoding", b"gzip")]), "response") == data


TOLD = (Position(b"hi", -0.5, ((b"hi", -0.5), (b"ho", -1.0))),)


def test_log_probabilities_are_the_last_of_a_record_where_there_are_any() -> None:
    found = record(logprobs=list(TOLD), request=b"{}", response=b"hi")
    assert list(found)[-1] == "logprobs"
    assert base64.b64decode(found["logprobs"]) == packed(TOLD)
    assert "logprobs" not in record()


@pytest.mark.parametrize("side", [{"request": KEY.encode()}, {"response": bytearray(KEY.encode())}, {"partial": True}])
def test_of_what_was_redacted_or_cut_off_no_log_probabilities_are_kept(side: dict[str, Any]) -> None:
    found = record(**{"request": b"{}", "response": b"hi", "logprobs": TOLD} | side)
    assert "logprobs" not in found


@given(told=st.booleans(), partial=st.booleans(), latency=st.floats(0, 1e9), error=st.none() | st.text())
def test_a_line_says_whether_it_holds_them(told: bool, partial: bool, latency: float, error: str | None) -> None:
    given: dict[str, Any] = {"partial": partial, "latency_ms": latency, "error": error}
    line = Exchange("1", 1.5, "POST", "/v1/x", logprobs=TOLD if told else (), **given).line(Redactor(SECRETS_ONLY))
    assert holds_logprobs(line) == ("logprobs" in json.loads(line)) == (told and not partial)
