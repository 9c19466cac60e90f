import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.deciding import Answer, Asked, CandidateFailed, Decide, Decision
from proxy.replay import create_replay
from proxy.stripper import UsageStripper
from proxy.traffic_file import Row
from tests.proxies import ask, exchange_raw, proxying, raw_server
from tests.servers import eventually, free_port, serving

TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Oslo"}'}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "o", "schema": {"type": "object"}}}


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


@pytest.mark.parametrize(
    ("path", "event"), [("chat/completions", b"data: "), ("messages", b'event: error\ndata: {"type":"error",')]
)
def test_of_a_stream_that_breaks_off_everything_that_came_is_passed_on(path: str, event: bytes, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    waits = b'data: {"choices":[{"finish_reason":"stop","stop_reason":null}]}\n\ndata: {"usage'
    with raw_server(head + b"%x\r\n%s\r\n" % (len(waits), waits)) as (url, _), proxying(url, tmp_path) as proxy:
        answer = httpx.post(f"{proxy.url}/{path}", json={"stream": True}, timeout=20).content
    assert answer.startswith(waits + b"\n\n" + event)
    assert b"the upstream broke off" in answer


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


@pytest.mark.parametrize("body", [b"{nope", b"", b"[]", b'{"messages": []}', b"\xff"])
def test_malformed_requests_get_the_teachers_own_error(body: bytes, teacher: str, tmp_path: Path) -> None:
    with proxying(teacher, tmp_path) as proxy, proxy.client() as client:
        response = client._client.post("/chat/completions", content=body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


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


class Flowing:
    """A candidate's answer under way: some pieces, then it dies, or lets one wait who has them."""

    def __init__(self, *pieces: bytes, dies: bool = False) -> None:
        self.closed, self.go = 0, threading.Event()
        self._pieces, self._dies = pieces, dies

    async def answer(self) -> Answer:
        return Answer(b"text/event-stream", b"", True, 0.9, self)

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._dies:
            raise CandidateFailed("candidate timed out")
        while not self.go.is_set():
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self.closed += 1


def test_an_answer_that_flows_goes_out_as_it_comes_and_is_on_disk_before_its_done(teacher: str, tmp_path: Path) -> None:
    flow = Flowing(b'data: {"a": 1}\n\n', b'data: {"a": 2}\n\n', b"data: [DONE]\n\n")
    with proxying(teacher, tmp_path, deciding(flow.answer)) as proxy:
        with httpx.stream("POST", f"{proxy.url}/chat/completions", json={"stream": True}) as answer:
            assert answer.headers["x-stillroom-served-by"] == "student-1"
            assert answer.headers["content-type"] == "text/event-stream"
            got = b""
            for chunk in answer.iter_bytes():
                got += chunk
                if b"[DONE]" in got:
                    record = eventually(proxy.records)[0]  # While the candidate has not ended yet.
                    flow.go.set()
    assert got == record["response"].encode() == b'data: {"a": 1}\n\ndata: {"a": 2}\n\ndata: [DONE]\n\n'
    assert (record["partial"], record["confidence"], record["served_by"]) == (False, 0.9, "student-1")
    assert flow.closed == 1


def test_an_answer_that_flows_and_breaks_off_ends_in_an_error_event(teacher: str, tmp_path: Path) -> None:
    flow = Flowing(b'data: {"a": 1}\n\n', dies=True)
    with proxying(teacher, tmp_path, deciding(flow.answer)) as proxy:
        answer = httpx.post(f"{proxy.url}/chat/completions", json={"stream": True})
    assert answer.content.startswith(b'data: {"a": 1}\n\n')
    assert b"broke off" in answer.content
    assert b"[DONE]" not in answer.content
    (record,) = proxy.records()
    assert (record["partial"], record["error"], record["response"]) == (
        True,
        "candidate timed out",
        'data: {"a": 1}\n\n',
    )
    assert flow.closed == 1


def test_who_leaves_an_answer_that_flows_ends_it(teacher: str, tmp_path: Path) -> None:
    flow = Flowing(b'data: {"a": 1}\n\n')
    with proxying(teacher, tmp_path, deciding(flow.answer)) as proxy:
        with httpx.stream("POST", f"{proxy.url}/chat/completions", json={"stream": True}) as answer:
            next(answer.iter_bytes())
        assert eventually(lambda: flow.closed) == 1
    (record,) = proxy.records()
    assert (record["partial"], record["error"]) == (True, "client hung up")


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
