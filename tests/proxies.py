"""A proxy in front of a teacher, both on loopback, and teachers that misbehave."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from proxy.app import create_app
from proxy.deciding import Decide, always_teacher
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import closed_segments
from tests.servers import serving


def ask(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "system", "content": "Be brief."}, {"role": "user", "content": text})


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
    teacher: str,
    spool: Path,
    decide: Decide = always_teacher,
    stream_usage: bool = True,
    logprobs_share: float = 0.0,
    **proxy: Any,
) -> Iterator[Proxy]:
    """A proxy in front of `teacher`; its records are complete once it is closed, or soon, as segments are young."""
    app = create_app(
        ProxySettings(**proxy),
        TeacherSettings(url=teacher, stream_usage=stream_usage, logprobs_share=logprobs_share),
        SpoolSettings(rotate_seconds=0.05),
        spool,
        decide,
    )
    with serving(app) as url:
        yield Proxy(url, spool)


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
