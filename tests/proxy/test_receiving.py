import asyncio
import socket
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.receiving import BodyTooLarge, ClientGone, Message, read_body
from proxy.replay import create_replay
from tests.proxies import ask, proxying, raw_server
from tests.servers import eventually, serving


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


def test_twenty_megabytes_pass_and_more_than_allowed_is_a_413(tmp_path: Path) -> None:
    big = ask("x" * 20_000_000)
    with serving(create_replay(())) as teacher:
        with proxying(teacher, tmp_path / "a") as proxy, proxy.client() as client, pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4o", messages=big)  # type: ignore[arg-type]
        assert proxy.records()[0]["request_bytes"] > 20_000_000
        with proxying(teacher, tmp_path / "b", max_body_mb=1) as proxy, proxy.client() as client:
            with pytest.raises(openai.APIStatusError, match="max_body_mb") as raised:
                client.chat.completions.create(model="gpt-4o", messages=big)  # type: ignore[arg-type]
        assert raised.value.status_code == 413


@given(parts=st.lists(st.binary(max_size=8)), limit=st.integers(0, 40), declared=st.booleans())
def test_a_body_is_read_whole_or_refused(parts: list[bytes], limit: int, declared: bool) -> None:
    body = b"".join(parts)
    headers = [(b"content-length", str(len(body)).encode())] if declared else []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    arriving = iter([*messages, {"type": "http.request"}])

    async def receive() -> Message:
        return next(arriving)

    if len(body) > limit:
        with pytest.raises(BodyTooLarge):
            asyncio.run(read_body(headers, receive, limit))
        assert not declared or list(arriving) == [*messages, {"type": "http.request"}]  # Refused before it came.
    else:
        assert asyncio.run(read_body(headers, receive, limit)) == body


async def test_a_client_that_leaves_before_its_request_is_whole() -> None:
    arriving = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(arriving)

    with pytest.raises(ClientGone):
        await read_body([], receive, 100)
