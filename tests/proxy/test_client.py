import asyncio
import contextlib
import itertools
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from proxy import client as client_module
from proxy.client import Client, Response, UpstreamBroke
from proxy.errors import BadInput
from tests.servers import free_port

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\r\nay!\r\n0\r\nX-Trailer: 1\r\n\r\n"


class Upstream:
    """Answers each request of a connection with the next of `answers`, in the given pieces; keeps what it got."""

    def __init__(self, *answers: bytes | Sequence[bytes], hang: bool = False, end: bool = False) -> None:
        self.answers = [[answer] if isinstance(answer, bytes) else list(answer) for answer in answers]
        self.hang, self.end = hang, end
        self.got: list[bytes] = []
        self.connections = 0
        self.lost = asyncio.Event()
        self.handlers: set[asyncio.Task[None] | None] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.handlers.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                self.got.append(head + (await reader.readexactly(int(length[1])) if length else b""))
                for piece in self.answers.pop(0):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
            if self.hang:
                await reader.read()
        self.lost.set()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None, read_timeout: float = 5.0) -> AsyncIterator[Client]:
        async with await asyncio.start_server(self.handle, "127.0.0.1", 0, ssl=tls) as server:
            port = server.sockets[0].getsockname()[1]
            client = Client(f"http{'s' if tls else ''}://localhost:{port}", 5.0, read_timeout)
            yield client
            client.close()
            await asyncio.gather(*(handler for handler in self.handlers if handler))


async def answered(client: Client, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
    response = await client.request(method, "/v1/x", [(b"A", b"1")], body)
    return response.status, await response.read()


async def test_the_request_goes_out_as_given() -> None:
    upstream = Upstream(PLAIN)
    async with upstream.serving() as client:
        response = await client.request("POST", "/v1/x?q=%41", [(b"X-A", b"\xff"), (b"x-a", b"2")], b"\0body")
        assert await response.read() == b"ok"
    head, _, body = upstream.got[0].partition(b"\r\n\r\n")
    first, host, *rest = head.split(b"\r\n")
    assert first == b"POST /v1/x?q=%41 HTTP/1.1"
    assert re.fullmatch(rb"Host: localhost:\d+", host)
    assert rest == [b"X-A: \xff", b"x-a: 2", b"Content-Length: 5"]
    assert body == b"\0body"


@pytest.mark.parametrize(("method", "sized"), [("GET", False), ("DELETE", False), ("POST", True), ("PUT", True)])
async def test_an_empty_body_is_announced_where_one_is_expected(method: str, sized: bool) -> None:
    upstream = Upstream(PLAIN)
    async with upstream.serving() as client:
        await answered(client, method)
    assert (b"Content-Length: 0" in upstream.got[0]) == sized


async def test_who_is_cancelled_late_takes_nobody_elses_connection_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is whole, but it did not run yet; meanwhile the connection carries the next request."""
    upstream = Upstream(PLAIN, PLAIN, hang=True)
    second: list[asyncio.Task[tuple[int, bytes]]] = []
    complete = client_module._Connection.on_headers_complete

    def on_headers_complete(connection: client_module._Connection) -> None:
        if not second:  # Its turn comes before that of who waits for this head.
            second.append(asyncio.create_task(answered(client)))
        complete(connection)

    monkeypatch.setattr(client_module._Connection, "on_headers_complete", on_headers_complete)
    async with upstream.serving() as client:
        keep = client._keep
        client._keep = lambda connection: (keep(connection), first.cancel())  # type: ignore[method-assign]
        first = asyncio.create_task(answered(client))
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second[0] == (200, b"ok")
        assert upstream.connections == 1
        client.close()


async def test_a_connection_is_used_again() -> None:
    upstream = Upstream(PLAIN, CHUNKED, PLAIN)
    async with upstream.serving() as client:
        assert [await answered(client) for _ in range(3)] == [(200, b"ok"), (200, b"okay!"), (200, b"ok")]
    assert upstream.connections == 1


async def test_at_once_means_connections_of_their_own() -> None:
    upstream = Upstream(PLAIN, PLAIN, PLAIN)
    async with upstream.serving() as client:
        assert await asyncio.gather(*(answered(client) for _ in range(3))) == [(200, b"ok")] * 3
        assert upstream.connections == 3


async def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    upstream = Upstream(PLAIN, PLAIN)
    async with upstream.serving() as client:
        for _ in range(2):
            await answered(client)
        await upstream.lost.wait()
        await asyncio.sleep(0.01)
        upstream.answers = [[PLAIN]]
        assert await answered(client, "POST", b"x") == (200, b"ok")
    assert upstream.connections == 2


async def test_after_an_error_of_the_servers_own_its_connection_is_not_used_again() -> None:
    upstream = Upstream(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", hang=True)
    async with upstream.serving() as client:
        assert await answered(client) == (500, b"no")
        upstream.answers = [[PLAIN]]
        assert await answered(client) == (200, b"ok")
    assert upstream.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
async def test_an_answer_may_end_with_its_connection(answer: bytes) -> None:
    upstream = Upstream(answer)
    async with upstream.serving() as client:
        assert await answered(client) == (200, b"ok")
        upstream.answers = [[PLAIN]]
        assert await answered(client) == (200, b"ok")
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 204 No\r\n\r\n", 204),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\nHTTP/1.1 201 OK\r\nContent-Length: 0\r\n\r\n", 201),
    ],
)
async def test_answers_without_a_body(answer: bytes, status: int) -> None:
    upstream = Upstream(answer, PLAIN)
    async with upstream.serving() as client:
        assert await answered(client) == (status, b"")
        assert await answered(client) == (200, b"ok")
    assert upstream.connections == 1


async def test_the_answer_to_head_has_no_body_whatever_it_announces() -> None:
    upstream = Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", hang=True)
    async with upstream.serving() as client:
        response = await client.request("HEAD", "/v1/x", [], b"")
        assert dict(response.raw_headers) == {b"Content-Length": b"9000"}
        assert await response.read() == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
    ],
)
async def test_an_answer_that_breaks_off_or_is_none_fails(answer: bytes) -> None:
    async with Upstream(answer).serving() as client:
        with pytest.raises(UpstreamBroke):
            await answered(client)


async def test_what_came_before_the_break_is_handed_on() -> None:
    async with Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok").serving() as client:
        response = await client.request("GET", "/", [], b"")
        pieces = response.pieces()
        assert await anext(pieces) == b"ok"
        with pytest.raises(UpstreamBroke):
            await anext(pieces)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"])
async def test_silence_is_a_timeout(answer: bytes) -> None:
    upstream = Upstream(answer, hang=True)
    async with upstream.serving(read_timeout=0.05) as client:
        with pytest.raises(TimeoutError):
            await answered(client)
        await upstream.lost.wait()


async def test_silence_is_a_timeout_on_a_connection_used_before_too() -> None:
    upstream = Upstream(PLAIN, PLAIN, b"", hang=True)
    async with upstream.serving(read_timeout=0.2) as client:
        assert await answered(client) == (200, b"ok")
        await asyncio.sleep(0.3)  # The first exchange's time is over, and nobody was waiting.
        assert await answered(client) == (200, b"ok")
        with pytest.raises(TimeoutError):
            await answered(client)
        assert upstream.connections == 1


async def test_nobody_there_and_no_such_host_are_os_errors() -> None:
    with pytest.raises(ConnectionRefusedError):
        await answered(Client(f"http://127.0.0.1:{free_port()}", 5, 5))
    with pytest.raises(socket.gaierror):
        await answered(Client("http://no-such-host.invalid", 5, 5))


@pytest.mark.parametrize("url", ["ftp://x", "localhost:80", "http://", "http://exämple.org", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="no http"):
        Client(url, 1, 1)


async def test_an_answer_given_up_closes_its_connection() -> None:
    upstream = Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", hang=True)
    async with upstream.serving() as client:
        response = await client.request("GET", "/", [], b"")
        response.close()
        await upstream.lost.wait()


async def test_a_request_given_up_closes_its_connection() -> None:
    upstream = Upstream(b"", hang=True)
    async with upstream.serving() as client:
        asking = asyncio.create_task(answered(client))
        while not upstream.got:
            await asyncio.sleep(0.001)
        asking.cancel()
        await upstream.lost.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_a_reader_that_is_slow_slows_the_upstream() -> None:
    large, pieces = 64 << 20, 1024
    piece = b"x" * (large // pieces)
    upstream = Upstream([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % large, *[piece] * pieces], PLAIN)
    async with upstream.serving() as client:
        response = await client.request("GET", "/", [], b"")
        await asyncio.sleep(0.2)
        assert _held(response) < 4 << 20
        assert len(await response.read()) == large
        assert await answered(client) == (200, b"ok")
    assert upstream.connections == 1


async def test_a_slow_reader_is_no_silent_upstream() -> None:
    large = b"x" * (8 << 20)
    upstream = Upstream([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large), large])
    async with upstream.serving(read_timeout=0.1) as client:
        response = await client.request("GET", "/", [], b"")
        await asyncio.sleep(0.4)
        assert len(await response.read()) == len(large)


async def test_bytes_nobody_asked_for_close_the_connection() -> None:
    upstream = Upstream(PLAIN + PLAIN, hang=True)
    async with upstream.serving() as client:
        assert await answered(client) == (200, b"ok")
        await asyncio.sleep(0.02)
        upstream.answers = [[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew"]]
        assert await answered(client) == (200, b"new")


async def test_a_large_body_goes_out_whole() -> None:
    upstream = Upstream(PLAIN)
    body = bytes(range(256)) * 20_000
    async with upstream.serving() as client:
        assert await answered(client, "POST", body) == (200, b"ok")
    assert upstream.got[0].endswith(body)


async def test_an_early_answer_to_an_unfinished_request_is_an_answer() -> None:
    done = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 20):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        done.set()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1 << 12) as server:
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 5, 5)
        assert await answered(client, "POST", b"x" * (64 << 20)) == (413, b"no")
        client.close()
        await done.wait()


def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


async def test_tls_with_a_trusted_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        upstream = Upstream(PLAIN, PLAIN)
        async with upstream.serving(server_side(authority)) as client:
            assert [await answered(client) for _ in range(2)] == [(200, b"ok")] * 2
        assert upstream.connections == 1


async def test_tls_refuses_who_cannot_show_who_it_is() -> None:
    async with Upstream(PLAIN).serving(server_side(trustme.CA())) as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            await answered(client)


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=6))
async def test_an_answer_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CHUNKED)]
    async with Upstream([CHUNKED[a:b] for a, b in itertools.pairwise(edges)]).serving() as client:
        assert await answered(client) == (200, b"okay!")


def _held(response: Response) -> int:
    return sum(map(len, response._pieces))
