import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from proxy.errors import BadInput
from proxy.headers import Headers
from proxy.settings import TeacherSettings
from proxy.upstream import Teacher, named_by_connection, response_headers, teacher_key
from tests.servers import free_port

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@contextlib.asynccontextmanager
async def recording(answer: bytes = ANSWER) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that keeps requests as they came over the wire and gives one answer."""
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        got.append(head + (await reader.readexactly(int(length[1])) if length else b""))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got


async def sent(
    headers: Headers,
    body: bytes = b"",
    target: str = "/v1/x",
    key_env: str = "",
    method: str = "POST",
    suffix: str = "",
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Request line, headers and body as the teacher got them."""
    async with recording() as (url, got):
        teacher = Teacher(TeacherSettings(url=url + suffix, key_env=key_env))
        response = await teacher.forward(method, target, headers, body)
        assert await response.read() == b"ok"
        teacher.close()
    head, _, received = got[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, [(line.split(": ", 1)[0], line.split(": ", 1)[1]) for line in lines], received


def names(headers: list[tuple[str, str]]) -> set[str]:
    return {name.lower() for name, _ in headers}


async def test_only_what_the_client_sent_arrives() -> None:
    _, headers, body = await sent([(b"Host", b"stillroom"), (b"Content-Length", b"4"), (b"X-A", b"1")], b"\xff\0ab")
    assert names(headers) == {"host", "content-length", "x-a"}
    assert ("X-A", "1") in headers
    assert ("Content-Length", "4") in headers
    assert "stillroom" not in dict(headers)["Host"]
    assert body == b"\xff\0ab"


async def test_hop_by_hop_headers_those_connection_names_and_ours_stay_behind() -> None:
    _, headers, _ = await sent(
        [
            (b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"x-hop", b"2"), (b"Keep-Alive", b"5"),
            (b"TE", b"trailers"), (b"Upgrade", b"h2c"), (b"Transfer-Encoding", b"chunked"),
            (b"Expect", b"100-continue"),
            (b"Proxy-Authorization", b"secret"), (b"X-Stillroom-Task", b"triage"), (b"X-Stays", b"yes"),
        ]
    )  # fmt: skip
    assert names(headers) - {"host", "content-length"} == {"x-stays"}


async def test_repeated_headers_are_kept_in_order() -> None:
    _, headers, _ = await sent([(b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3")])
    assert [value for name, value in headers if name == "x-a"] == ["1", "3"]


async def test_header_values_go_on_as_the_same_bytes() -> None:
    _, headers, _ = await sent([(b"X-Name", "Jürgen".encode())])
    assert ("X-Name", "Jürgen") in headers


async def test_the_clients_key_passes_through_and_ours_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TEACHER_KEY", "sk-ours")
    client = [(b"authorization", b"Bearer sk-client"), (b"authorization", b"Bearer sk-second")]
    for key_env, expected in (("", ["Bearer sk-client", "Bearer sk-second"]), ("TEST_TEACHER_KEY", ["Bearer sk-ours"])):
        _, headers, _ = await sent(client, key_env=key_env)
        assert [value for name, value in headers if name.lower() == "authorization"] == expected


async def test_no_credential_of_a_client_goes_out_with_our_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TEACHER_KEY", "sk-ours")
    client = [(b"X-Api-Key", b"sk-a"), (b"api-key", b"sk-b"), (b"AUTHORIZATION", b"Basic sk-c"), (b"x-keys", b"stays")]
    _, ours, _ = await sent(client, key_env="TEST_TEACHER_KEY")
    assert names(ours) - {"host", "content-length"} == {"authorization", "x-keys"}
    assert [value for name, value in ours if "sk-" in value] == ["Bearer sk-ours"]
    _, theirs, _ = await sent(client)
    assert [value for _, value in theirs if "sk-" in value] == ["sk-a", "sk-b", "Basic sk-c"]


async def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TEACHER_KEY", raising=False)
    with pytest.raises(BadInput, match="names TEST_TEACHER_KEY, which is not set: export it"):
        teacher_key(TeacherSettings(key_env="TEST_TEACHER_KEY"))
    assert teacher_key(TeacherSettings()) == ""
    monkeypatch.setenv("TEST_TEACHER_KEY", "")  # Would let clients' own keys through, against the setting.
    with pytest.raises(BadInput, match="names TEST_TEACHER_KEY, which is not set: export it"):
        teacher_key(TeacherSettings(key_env="TEST_TEACHER_KEY"))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_target_is_sent_as_it_came(suffix: str) -> None:
    target = "/v1/a%2Fb%20c?q=%41&q=+"
    first, _, _ = await sent([], target=target, method="DELETE", suffix=suffix)
    assert first == f"DELETE {target} HTTP/1.1"


async def test_a_large_body_arrives_whole() -> None:
    large = bytes(range(256)) * 5000
    _, headers, body = await sent([(b"Content-Type", b"application/json")], large)
    assert body == large
    assert ("Content-Length", str(len(large))) in headers
    assert "transfer-encoding" not in names(headers)


async def test_redirects_cookies_and_compression_are_the_clients_matter() -> None:
    head = b"HTTP/1.1 307 Go\r\nLocation: /v1/y\r\nSet-Cookie: a=b\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n"
    async with recording(head + b"Connection: close\r\n\r\nraw") as (url, got):
        teacher = Teacher(TeacherSettings(url=url))
        for _ in range(2):
            response = await teacher.forward("GET", "/v1/x", [], b"")
            assert (response.status, await response.read()) == (307, b"raw")
        teacher.close()
    assert len(got) == 2
    assert b"cookie" not in got[1].lower()


async def test_a_teacher_that_is_not_there_raises_what_the_relay_handles() -> None:
    teacher = Teacher(TeacherSettings(url=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(ConnectionRefusedError):
        await teacher.forward("GET", "/v1/x", [], b"")
    teacher.close()


def test_connection_names_are_taken_from_every_such_header() -> None:
    headers = [(b"Connection", b"close, X-One"), (b"connection", b" x-two ,"), (b"other", b"x-three")]
    assert named_by_connection(headers) == {b"close", b"x-one", b"x-two", b""}


def test_the_answers_headers_lose_only_what_is_hop_by_hop() -> None:
    raw = [
        (b"Connection", b"X-Hop"), (b"X-Hop", b"1"), (b"Transfer-Encoding", b"chunked"), (b"Set-Cookie", b"a"),
        (b"Set-Cookie", b"b"), (b"Content-Length", b"2"), (b"Content-Encoding", b"gzip"),
    ]  # fmt: skip
    assert response_headers(iter(raw)) == [(name.lower(), value) for name, value in raw[3:]]
