import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.app import create_app
from proxy.deciding import Answer, Asked, CandidateFailed, Decide, Decision, always_teacher
from proxy.replay import create_replay
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import adopt, closed_segments
from proxy.traffic_file import Row
from proxy.usage import UsageStripper
from tests.servers import eventually, free_port, serving

TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Oslo"}'}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "o", "schema": {"type": "object"}}}


def ask(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text})


ROWS = (
    Row(ask("greet"), "Good  morning,\nwörld! 🙂 ", None, "gpt-4o", None),
    Row(ask("json"), '{"a": 1}', None, "gpt-4o", None),
    Row(ask("weather"), None, (CALL,), "gpt-4o", TOOLS),
)
CALLS: dict[str, dict[str, Any]] = {
    "plain": {"messages": ask("greet")},
    "stream": {"messages": ask("greet"), "stream": True},
    "stream with usage": {"messages": ask("greet"), "stream": True, "stream_options": {"include_usage": True}},
    "tool calls": {"messages": ask("weather"), "tools": TOOLS},
    "tool calls in a stream": {"messages": ask("weather"), "tools": TOOLS, "stream": True},
    "JSON schema": {"messages": ask("json"), "response_format": SCHEMA},
    "n=2": {"messages": ask("greet"), "n": 2},
    "upstream 401": {"messages": ask("greet"), "extra_headers": {"x-replay-status": "401"}},
    "upstream 429": {"messages": ask("greet"), "extra_headers": {"x-replay-status": "429"}},
    "upstream 500": {"messages": ask("greet"), "extra_headers": {"x-replay-status": "500"}},
    "unknown prompt": {"messages": ask("never recorded")},
}


@dataclass(frozen=True)
class Proxy:
    url: str
    spool: Path

    def records(self) -> list[dict[str, Any]]:
        lines = [line for segment in closed_segments(self.spool) for line in segment.read_bytes().split(b"\n") if line]
        return [json.loads(line) for line in lines]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="sk-secret-of-the-client", max_retries=0)


@contextlib.contextmanager
def proxying(
    teacher: str, spool: Path, decide: Decide = always_teacher, stream_usage: bool = True, **proxy: Any
) -> Iterator[Proxy]:
    """A proxy in front of `teacher`; its records are complete once it is closed, or soon, as segments are young."""
    app = create_app(
        ProxySettings(**proxy),
        TeacherSettings(url=teacher, stream_usage=stream_usage),
        SpoolSettings(rotate_seconds=0.05),
        spool,
        decide,
    )
    with serving(app) as url:
        yield Proxy(url, spool)


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with serving(create_replay(ROWS)) as url:
        yield url


def wire(client: openai.OpenAI, arguments: dict[str, Any]) -> tuple[int, bytes, str | None]:
    """Status, body bytes as they came over the wire, and Retry-After."""
    try:
        with client.chat.completions.with_streaming_response.create(model="gpt-4o", **arguments) as response:
            body = b"".join(response.iter_bytes())
            return response.status_code, body, response.headers.get("retry-after")
    except openai.APIStatusError as error:
        return error.status_code, error.response.content, error.response.headers.get("retry-after")


def without_usage(answer: str) -> bytes:
    stripper = UsageStripper()
    return stripper.feed(answer.encode()) + stripper.end()


def without_ids(body: bytes) -> bytes:
    return re.sub(rb'"created": ?\d+', b'"created":0', re.sub(rb"chatcmpl-\w+", b"chatcmpl-", body))


@pytest.mark.parametrize("name", CALLS)
def test_the_sdk_gets_the_same_bytes_as_straight_from_the_upstream(name: str, teacher: str, tmp_path: Path) -> None:
    with openai.OpenAI(base_url=teacher, api_key="sk-any", max_retries=0) as direct:
        straight = wire(direct, CALLS[name])
    with proxying(teacher, tmp_path) as proxy, proxy.client() as client:
        status, body, retry_after = wire(client, CALLS[name])
    assert (status, without_ids(body), retry_after) == (straight[0], without_ids(straight[1]), straight[2])
    (record,) = proxy.records()
    asked = name == "stream with usage" or "stream" not in CALLS[name]
    assert (record["response"].encode() if asked else without_usage(record["response"])) == body
    assert (record["status"], record["partial"], record["served_by"]) == (status, False, "teacher")
    assert "sk-secret" not in json.dumps(record)


def test_other_paths_are_relayed_untouched(teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path) as proxy, proxy.client() as client:
        assert [model.id for model in client.models.list()] == ["gpt-4o"]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="m", input="x")
    assert [record["path"] for record in proxy.records()] == ["/v1/models", "/v1/embeddings"]


def test_the_request_arrives_byte_for_byte(tmp_path: Path) -> None:
    body = b'{ "model":"gpt-4o" ,"b":1,"a":[ 2.50,1e3 ],"messages":[],"new_field":{"\\u00e9":"\xc3\xa9"} }'
    head = (
        b"POST /v1/chat/completions?x=1&y=%20z HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer sk-client\r\n"
        b"Content-Type: application/json\r\nOpenAI-Organization: org\r\nX-Stillroom-Task: t\r\nConnection: close\r\n"
    )
    request = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with (
        raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Thing: 1\r\n\r\n{}") as (url, got),
        proxying(url, tmp_path) as proxy,
    ):
        answer = exchange_raw(proxy.url, request)
    head, _, sent = got[0].partition(b"\r\n\r\n")
    assert sent == body
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /v1/chat/completions?x=1&y=%20z http/1.1"
    assert b"authorization: bearer sk-client" in lines
    assert b"openai-organization: org" in lines
    assert not any(line.startswith((b"x-stillroom", b"connection: close", b"user-agent", b"accept")) for line in lines)
    assert b"x-thing: 1" in answer.lower()
    assert answer.endswith(b"\r\n\r\n{}")


def test_a_stream_that_breaks_off_ends_in_an_error_event_and_no_done(tmp_path: Path) -> None:
    half = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\ndata: {"choices":[]}\n\n'
    with raw_server(half) as (url, _), proxying(url, tmp_path) as proxy, proxy.client() as client:
        with (
            pytest.raises(openai.APIError, match="broke off"),
            client.chat.completions.create(
                model="gpt-4o",
                messages=ask("x"),
                stream=True,  # type: ignore[arg-type]
            ) as chunks,
        ):
            list(chunks)
    (record,) = proxy.records()
    assert record["partial"] is True
    assert "[DONE]" not in record["response"]


def test_a_client_that_hangs_up_leaves_a_partial_record(tmp_path: Path) -> None:
    endless = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    )
    with raw_server(endless, hold=True) as (url, _), proxying(url, tmp_path) as proxy:
        with (
            proxy.client() as client,
            client.chat.completions.with_streaming_response.create(
                model="gpt-4o",
                messages=ask("x"),
                stream=True,  # type: ignore[arg-type]
            ) as response,
        ):
            next(response.iter_bytes())
        record = eventually(proxy.records)[0]
    assert (record["partial"], record["error"]) == (True, "client hung up")


def test_a_client_that_does_not_wait_for_a_plain_answer_cancels_it(tmp_path: Path) -> None:
    with raw_server(b"", hold=True) as (url, got), proxying(url, tmp_path) as proxy:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{proxy.url}/chat/completions", json={"messages": []}, timeout=0.2)
        record = eventually(proxy.records)[0]
        assert len(got) == 1
    assert (record["partial"], record["error"], record["status"]) == (True, "client hung up", 0)


def test_an_answer_nobody_waits_for_may_be_read_on_for_its_usage(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    first, last = b'data: {"choices":[1]}\n\n', b'data: {"choices":[],"usage":{"n":1}}\n\ndata: [DONE]\n\n'
    gone = threading.Event()

    def slowly(connection: socket.socket) -> None:
        connection.sendall(head + first)
        gone.wait()
        time.sleep(0.5)  # The proxy has to see the client leave first.
        connection.sendall(last)

    with raw_server(slowly) as (url, _), proxying(url, tmp_path, drain_seconds=30.0) as proxy:
        with proxy.client() as client:
            stream = client.chat.completions.with_streaming_response
            with stream.create(model="gpt-4o", messages=ask("x"), stream=True) as response:  # type: ignore[arg-type]
                next(response.iter_bytes())
        gone.set()
        record = eventually(proxy.records)[0]
    assert (record["partial"], record["error"]) == (True, "client hung up")
    assert record["response"].encode() == first + last


@pytest.mark.parametrize("wanted", [True, False])
def test_usage_is_asked_for_and_kept_but_not_shown(wanted: bool, tmp_path: Path) -> None:
    chunk, usage = b'data: {"choices":[1],"usage":null}\n\n', b'data: {"choices":[],"usage":{"n":1}}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 88\r\n\r\n"
    whole = chunk + usage + b"data: [DONE]\n\n"
    assert len(whole) == 88
    with raw_server(head + whole) as (url, got), proxying(url, tmp_path, stream_usage=wanted) as proxy:
        answer = httpx.post(f"{proxy.url}/chat/completions", content=b'{"stream":true}')
    sent = got[0].partition(b"\r\n\r\n")[2]
    (record,) = proxy.records()
    assert (record["request"], record["response"]) == ('{"stream":true}', whole.decode())
    if wanted:
        assert sent == b'{"stream":true,"stream_options":{"include_usage":true}}'
        assert b"accept-encoding: identity" in got[0].lower()
        assert answer.content == b'data: {"choices":[1]}\n\ndata: [DONE]\n\n'
    else:
        assert (sent, answer.content) == (b'{"stream":true}', whole)


def test_a_response_is_on_disk_before_its_last_event_is_out(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    events = b"event: response.created\ndata: {}\n\n", b'event: response.completed\ndata: {"response":{}}\n\n'
    with raw_server(head + events[0] + events[1], hold=True) as (url, _), proxying(url, tmp_path) as proxy:
        with httpx.stream("POST", f"{proxy.url}/responses", json={"stream": True}) as answer:
            next(chunk for chunk in answer.iter_bytes() if b"response.completed" in chunk)
            record = eventually(proxy.records)[0]  # While the upstream still holds its connection.
    assert (record["partial"], record["response"].encode()) == (False, events[0] + events[1])


def test_a_plain_answer_that_breaks_off_is_not_passed_off_as_whole(tmp_path: Path) -> None:
    half = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"half":'
    with raw_server(half) as (url, _), proxying(url, tmp_path) as proxy, proxy.client() as client:
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model="gpt-4o", messages=ask("x"))  # type: ignore[arg-type]
    (record,) = proxy.records()
    assert record["partial"] is True


def test_an_unreachable_teacher_is_a_502_that_says_what_to_do(tmp_path: Path) -> None:
    with proxying(f"http://127.0.0.1:{free_port()}", tmp_path) as proxy, proxy.client() as client:
        with pytest.raises(openai.InternalServerError, match=r"teacher\.url") as raised:
            client.models.list()
    assert raised.value.status_code == 502
    assert proxy.records()[0]["error"].startswith("upstream: ")


def test_twenty_megabytes_pass_and_more_than_allowed_is_a_413(teacher: str, tmp_path: Path) -> None:
    big = ask("x" * 20_000_000)
    with proxying(teacher, tmp_path / "a") as proxy, proxy.client() as client, pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=big)  # type: ignore[arg-type]
    assert proxy.records()[0]["request_bytes"] > 20_000_000
    with proxying(teacher, tmp_path / "b", max_body_mb=1) as proxy, proxy.client() as client:
        with pytest.raises(openai.APIStatusError, match="max_body_mb") as raised:
            client.chat.completions.create(model="gpt-4o", messages=big)  # type: ignore[arg-type]
    assert raised.value.status_code == 413


@pytest.mark.parametrize("body", [b"{nope", b"", b"[]", b'{"messages": []}', b"\xff"])
def test_malformed_requests_get_the_teachers_own_error(body: bytes, teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path) as proxy, proxy.client() as client:
        response = client._client.post("/chat/completions", content=body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_traffic_goes_on_without_a_spool(teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with proxying(teacher, tmp_path / "spool") as proxy, proxy.client() as client:
        (tmp_path / "spool").rmdir()
        answer = client.chat.completions.create(model="gpt-4o", messages=ask("greet"))  # type: ignore[arg-type]
    assert answer.choices[0].message.content == ROWS[0].answer
    assert "is not recorded" in caplog.text


def test_who_opts_out_is_not_recorded(teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path) as proxy, proxy.client() as client:
        client.models.list(extra_headers={"x-stillroom-capture": "off"})
    assert proxy.records() == list(adopt(tmp_path)) == []


def deciding(answer: Callable[[], Awaitable[Answer]]) -> Decide:
    def decide(asked: Asked) -> Decision:
        return Decision("student-1", "live", answer)

    return decide


async def sure() -> Answer:
    return Answer(b"application/json", b'{"from": "student"}', False, 0.9)


async def unsure() -> Answer:
    raise CandidateFailed("unsure", 0.2)


def test_a_candidates_answer_goes_out_and_is_recorded(teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path, deciding(sure)) as proxy, proxy.client() as client:
        response = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=ask("greet"))  # type: ignore[arg-type]
        assert response.http_response.content == b'{"from": "student"}'
        assert response.headers["x-stillroom-served-by"] == "student-1"
    (record,) = proxy.records()
    assert (record["served_by"], record["confidence"], record["status"]) == ("student-1", 0.9, 200)


def test_an_unsure_candidate_falls_back_before_the_first_byte(teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path, deciding(unsure)) as proxy, proxy.client() as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=ask("greet"))  # type: ignore[arg-type]
    assert answer.choices[0].message.content == ROWS[0].answer
    (record,) = proxy.records()
    assert (record["served_by"], record["fallback"], record["confidence"]) == ("teacher", "unsure", 0.2)


@contextlib.contextmanager
def raw_server(
    answer: bytes | Callable[[socket.socket], None], hold: bool = False
) -> Iterator[tuple[str, list[bytes]]]:
    """A socket server that answers with fixed bytes and then closes, or holds on until the other side closes."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        got.append(read_request(connection))
                        answer(connection) if callable(answer) else connection.sendall(answer)
                        while hold and connection.recv(4096):
                            pass

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", got
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def exchange_raw(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_many_at_once_are_all_recorded_once(teacher: str, tmp_path: Path) -> None:
    async def storm(url: str) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-any", max_retries=0) as client:
            calls = [client.chat.completions.create(model="gpt-4o", messages=ask("greet")) for _ in range(200)]  # type: ignore[arg-type]
            await asyncio.gather(*calls)

    with proxying(teacher, tmp_path) as proxy:
        asyncio.run(storm(proxy.url))
    records = proxy.records()
    assert len(records) == len({record["id"] for record in records}) == 200


def test_an_answer_that_quotes_the_end_of_a_stream_is_recorded_whole(tmp_path: Path) -> None:
    events = [
        b'data: {"choices":[{"delta":{"content":"\\n\\ndata: [DONE]"}}]}\n\n',
        b"data: {}\n\nda",
        b"ta: [DONE]\n\n",
    ]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw_server(head + chunks) as (url, _), proxying(url, tmp_path) as proxy, proxy.client() as client:
        status, body, _ = wire(client, {"messages": ask("x"), "stream": True})
    assert (status, body) == (200, b"".join(events))
    assert proxy.records()[0]["response"].encode() == body
