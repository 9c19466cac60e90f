import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import wire
from tests.servers import eventually, serving


@pytest.fixture
def heard() -> list[tuple[list[Any], bytes]]:
    return []


@pytest.fixture
def port(heard: list[tuple[list[Any], bytes]]) -> Iterator[int]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/refused":
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"no"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        heard.append((scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with serving(app) as url:
        yield int(url.rpartition(":")[2].removesuffix("/v1"))


def sent(port: int, *pieces: bytes) -> bytes:
    """Everything that comes back until the server closes, or answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while not answer.endswith(b"ok") and (data := connection.recv(65536)):
            answer += data
    return answer


def test_an_ordinary_request_is_heard_whole(port: int, heard: list[Any]) -> None:
    answer = sent(port, b"POST / HTTP/1.1\r\nA: b\r\nContent-Le", b"ngth: 4\r\n\r\nbo", b"dy")
    assert answer.startswith(b"HTTP/1.1 200")
    assert heard == [([(b"a", b"b"), (b"content-length", b"4")], b"body")]


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"any"])
def test_an_upgrade_is_refused_with_what_to_do(port: int, heard: list[Any], upgrade: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: " + upgrade + b"\r\nContent-Length: 4\r\n\r\n"
    answer = sent(port, head + b"body")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.endswith(b"switch HTTP/2 (h2c) or WebSocket off in the client")
    assert heard == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",
        b"GET /\r\nA: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_what_others_would_understand_differently_is_refused(port: int, heard: list[Any], data: bytes) -> None:
    assert sent(port, data).startswith(b"HTTP/1.1 400")
    assert heard == []


WHOLE = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize("whole", [1, 2, 3])
@pytest.mark.parametrize("broken", [b"\0", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz", b"GET /\r\n\r\n"])
def test_the_answers_owed_come_before_what_is_broken(port: int, heard: list[Any], whole: int, broken: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(WHOLE * whole + broken)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [*[b"200"] * whole, b"400"]
    assert [body for _, body in heard] == [b"hi"] * whole


def test_who_answers_is_told_of_a_hang_up_also_when_others_wait_in_the_line() -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            told.append((await receive())["type"])
            told.append((await receive())["type"])

    with serving(app) as url:
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2][:-3])), timeout=20) as connection:
            connection.sendall(WHOLE * 2)
            eventually(lambda: told == ["http.request"])
        eventually(lambda: told == ["http.request", "http.disconnect"])


def test_a_head_without_end_is_refused(port: int, heard: list[Any]) -> None:
    answer = sent(port, b"GET / HTTP/1.1\r\nA: ", *[b"a" * (1 << 16)] * 16)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"too large" in answer
    assert heard == []


def test_a_large_body_is_no_large_head(port: int, heard: list[Any]) -> None:
    large = b"x" * (4 << 20)
    sent(port, b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
    assert [body for _, body in heard] == [large]


def test_trailers_are_no_headers(port: int, heard: list[Any]) -> None:
    sent(port, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n")
    assert heard == [([(b"transfer-encoding", b"chunked")], b"hi")]


@pytest.mark.parametrize("half", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo"])
def test_who_does_not_finish_a_request_is_not_waited_for(
    half: bytes, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_PATIENCE", 0.05)
    assert sent(port, half) == b""


def test_who_is_refused_while_still_sending_reads_why(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", *[b"x" * 65536] * 20):
            connection.sendall(piece)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400")


def test_who_goes_on_after_a_refusal_is_not_kept_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_PATIENCE", 1.0)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST /refused HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo")
        answer = b""
        while not answer.endswith(b"no"):
            answer += connection.recv(65536)
        connection.sendall(b"dy")
        assert connection.recv(65536) == b""


def test_who_waits_for_an_answer_is(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_PATIENCE", 0.01)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(3):
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
