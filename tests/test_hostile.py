"""A real Stillroom against clients that mean harm: whatever they send, everybody else is served and counted."""

import gzip
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from proxy.app import create_app
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from tests.deployment import Deployment, deployed
from tests.hostile import (
    ATTACKS,
    CHAT,
    FINE,
    MB,
    MODELS,
    NESTED,
    ROW,
    SETTINGS,
    SMUGGLED,
    STREAM,
    Answer,
    Heard,
    chunked,
    connected,
    framed,
    get,
    post,
    read,
    recording,
    request,
    said,
)
from tests.servers import eventually, serving


@dataclass(slots=True)
class Target:
    """The deployment under attack, and every exchange it told a client of."""

    deployment: Deployment
    port: int
    workers: list[int]
    controllers: list[int]
    exchanges: set[str] = field(default_factory=set)

    def ask(self, data: bytes, answers: int = 1) -> list[Answer]:
        with connected(self.port, data) as connection:
            return self.read(connection, answers)

    def read(self, connection: socket.socket, answers: int = 1) -> list[Answer]:
        found = read(connection, answers)
        self.exchanges.update(answer.exchange for answer in found if answer.exchange)
        return found

    def unharmed(self) -> None:
        """Somebody else's request is answered, by the process that was there before."""
        (answer,) = self.ask(post(CHAT))
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == "hi there"
        assert self.deployment.children("worker") == self.workers


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    with deployed(folder, [ROW], SETTINGS) as running:
        port = httpx.URL(running.url).port or 0
        yield Target(running, port, running.children("worker"), running.children("controller"))


@pytest.fixture(autouse=True)
def _unharmed(target: Target) -> Iterator[None]:
    yield
    target.unharmed()


@dataclass(frozen=True, slots=True)
class Watched:
    """A proxy whose teacher tells what it heard."""

    port: int
    heard: list[Heard]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setenv("TEST_KEY", "sk-test")
    with ExitStack() as stack:
        port, heard = stack.enter_context(recording())
        teacher = TeacherSettings(url=f"http://127.0.0.1:{port}", key_env="TEST_KEY")
        app = create_app(ProxySettings(max_body_mb=1), teacher, SpoolSettings(), tmp_path / "spool")
        yield Watched(httpx.URL(stack.enter_context(serving(app))).port or 0, heard)


def test_there_is_one_worker_and_one_controller(target: Target) -> None:
    assert len(target.workers) == len(target.controllers) == 1


CASES = [
    pytest.param(data, expected, id=f"{group}: {name}")
    for group, cases in ATTACKS.items()
    for name, (data, expected) in cases.items()
]


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_an_attack_is_refused_or_relayed(target: Target, data: bytes, expected: str) -> None:
    assert re.fullmatch(expected, said(target.ask(data)))


@pytest.mark.parametrize("data", NESTED, ids=["array", "member", "stream", "unclosed"])
def test_deep_nesting_is_for_the_teacher_to_refuse(target: Target, data: bytes) -> None:
    assert said(target.ask(data)) == "teacher 400"
    assert said(target.ask(post(CHAT))) == FINE


def test_a_teacher_that_fails_for_one_client_does_not_fail_for_the_next(target: Target) -> None:
    for data in NESTED * 15:
        target.ask(data)
        assert said(target.ask(post(CHAT))) == FINE


def test_a_length_of_many_zeros_is_no_error_of_ours(target: Target) -> None:
    answers = target.ask(framed(f"Content-Length: {'0' * 5000}2", body=b"{}"))
    assert re.fullmatch("teacher 400|proxy 4..", said(answers))


def test_a_head_of_eight_megabytes_is_refused(target: Target) -> None:
    assert re.fullmatch("proxy 4..|", said(target.ask(get("/v1/models", "X-A: " + "a" * (8 * MB)))))


def test_a_compressed_bomb_does_not_fill_the_controller(target: Target) -> None:
    status = Path(f"/proc/{target.controllers[0]}/status")

    def peak() -> int:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) >> 10

    def ingested(answers: list[Answer]) -> bool:
        return target.deployment.count(f"id = '{answers[0].exchange}'") == 1

    harmless, bomb = (post(gzip.compress(bytes(size)), "Content-Encoding: gzip") for size in (MB, 256 * MB))
    answers = target.ask(harmless)
    eventually(lambda: ingested(answers), 60)
    before = peak()
    answers = target.ask(bomb)
    assert said(answers) == "teacher 400"
    eventually(lambda: peak() - before >= 300 or ingested(answers), 60)
    assert peak() - before < 300


@pytest.mark.parametrize("form", ["http://{0}/v1/models", "http://evil@{0}/v1/models", "https://{0}/v1/models"])
def test_nobody_but_the_teacher_is_asked(target: Target, form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        authority = f"127.0.0.1:{elsewhere.getsockname()[1]}"
        headers = f"X-Forwarded-Host: {authority}", f"Forwarded: host={authority}"
        absolute = request(f"GET {form.format(authority)} HTTP/1.1", *headers)
        host = MODELS.replace(b"Host: proxy", f"Host: {authority}".encode())
        assert said([*target.ask(absolute), *target.ask(host)]) == "teacher 200, teacher 200"
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_expect_is_answered_before_the_body_is_sent(target: Target) -> None:
    head, _, body = post(CHAT, "Expect: 100-continue").partition(b"\r\n\r\n")
    with connected(target.port, head + b"\r\n\r\n") as connection:
        assert said(target.read(connection)) == "proxy 100"
        connection.sendall(body)
        assert said(target.read(connection)) == FINE


def test_requests_in_one_segment_are_answered_in_order(target: Target) -> None:
    refused, chat, missing, models = target.ask(post(b" " * (MB + 1)) + post(STREAM) + get("/v1/missing") + MODELS, 4)
    assert said([refused, chat, missing, models]) == "proxy 413, teacher 200, teacher 404, teacher 200"
    assert chat.body.endswith(b"data: [DONE]\n\n")
    assert json.loads(models.body)["object"] == "list"


def test_what_is_broken_does_not_break_into_the_answer_before_it(target: Target) -> None:
    chat, models, refused = target.ask(post(STREAM) + MODELS + get("/v1/models", "X-A: b\nc"), 3)
    assert said([chat, models, refused]) == "teacher 200, teacher 200, proxy 400"
    assert chat.body.endswith(b"data: [DONE]\n\n")


def test_fifty_heads_that_come_a_byte_at_a_time_delay_nobody(target: Target) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(target.port)) for _ in range(50)]
        for number, byte in enumerate(MODELS):
            for connection in slow:
                connection.sendall(bytes([byte]))
            if number % 10 == 0:
                target.unharmed()
        assert {said(target.read(connection)) for connection in slow} == {FINE}


@pytest.mark.parametrize("data", [b"", b"POST /v1/", framed("Content-Length: 100", body=b"{"), chunked(b"ffffff\r\n{")])
def test_fifty_requests_that_never_end_delay_nobody(target: Target, data: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connected(target.port, data))
        target.unharmed()


LEAVING = pytest.mark.parametrize("abort", [False, True], ids=["closed", "reset"])


@LEAVING
@pytest.mark.parametrize("data", [MODELS[:20], post(CHAT)[:-5], post(CHAT), post(STREAM), MODELS + post(STREAM) * 20])
def test_clients_that_leave_without_waiting_harm_nobody(target: Target, data: bytes, abort: bool) -> None:
    for _ in range(20):
        with connected(target.port, data, abort):
            pass


@LEAVING
@pytest.mark.parametrize("data", [post(CHAT), post(STREAM), MODELS + post(STREAM) * 20])
def test_clients_that_leave_within_the_answer_harm_nobody(target: Target, data: bytes, abort: bool) -> None:
    for _ in range(20):
        with connected(target.port, data, abort) as connection:
            assert connection.recv(1) == b"H"


def test_headers_of_ours_and_of_the_connection_stay_here(watched: Watched) -> None:
    ours = "x-stillroom-served-by: me", "X-Stillroom-Task: a", "x-stillroom-capture: off", "X-STILLROOM-ANY: b"
    hop = "Connection: keep-alive, X-Named", "X-Named: c", "TE: trailers", "Proxy-Authorization: d", "Keep-Alive: e"
    with connected(watched.port, post(CHAT, *ours, *hop, "Authorization: Bearer mine", "X-Kept: f")) as connection:
        (answer,) = read(connection)
    (heard,) = watched.heard
    assert answer.headers["x-stillroom-served-by"] == "teacher"
    assert (heard.line, heard.body) == ("post /v1/chat/completions http/1.1", CHAT)
    names = [header.partition(":")[0] for header in heard.headers]
    assert sorted(names) == ["authorization", "content-length", "host", "x-kept"]
    assert "authorization: bearer sk-test" in heard.headers


@pytest.mark.parametrize(
    "line", ["GET /v1/a%0d%0aX-A:%20b?c=%0d%0aX-D:%20e", "GET http://evil.example/v1/a", "GET /v1/a"]
)
def test_the_teacher_hears_the_target_as_it_was_written(watched: Watched, line: str) -> None:
    with connected(watched.port, request(f"{line} HTTP/1.1")) as connection:
        assert said(read(connection)) == FINE
    (heard,) = watched.heard
    assert heard.line == f"{line.replace('http://evil.example', '').lower()} http/1.1"
    assert len(heard.headers) == 2  # its own host, and its key


def test_what_follows_a_chunked_body_is_no_header(watched: Watched) -> None:
    with connected(watched.port, chunked(b"2\r\n{}\r\n0\r\nX-Trailer: a\r\n\r\n")) as connection:
        assert said(read(connection)) == FINE
    assert [header for header in watched.heard[0].headers if header.startswith("x-trailer")] == []


@pytest.mark.parametrize("path", ["/v1/../../healthz", "/v1/%2e%2e/%2E%2e/x", "/v1/a/../../x", "/v1/.."])
def test_no_path_leads_out_of_what_the_key_is_for(watched: Watched, path: str) -> None:
    with connected(watched.port, get(path)) as connection:
        read(connection)
    assert watched.heard == []


@pytest.mark.parametrize("headers", [("Connection: Upgrade", "Upgrade: h2c"), ("Connection: Upgrade", "Upgrade: x")])
@pytest.mark.parametrize("together", [True, False])
def test_the_body_of_an_upgrade_is_neither_lost_nor_a_request(
    watched: Watched, headers: tuple[str, ...], together: bool
) -> None:
    data = post(SMUGGLED, *headers)
    with connected(watched.port, data if together else data[: -len(SMUGGLED)]) as connection:
        if not together:
            connection.sendall(SMUGGLED)
        read(connection)
    assert [(heard.line[:4], heard.body) for heard in watched.heard] in ([], [("post", SMUGGLED)])


def test_afterwards_every_exchange_is_logged_once_or_counted(target: Target) -> None:
    def settled() -> bool:
        counted = target.deployment.counters()
        kept = counted["captured"] + counted.get("opted_out", 0) + counted.get("dropped", 0)
        return counted["requests"] == kept and target.deployment.count() == counted["captured"]

    target.ask(post(CHAT, "x-stillroom-capture: off"))
    eventually(settled, 60)
    logged = [row["id"] for row in target.deployment.json("sql", "select id from exchanges")]
    assert len(logged) == len(set(logged))
    assert len(target.exchanges) > 100
    assert len(target.exchanges - set(logged)) == 1  # the one that asked not to be kept
    assert target.deployment.count("path like '%smuggled%'") == 0
    assert target.deployment.children("controller") == target.controllers
