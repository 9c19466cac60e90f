"""Deployments of a teacher that misbehave as told, and several of them behind a Failover with a clock of its own."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from proxy.breaker import Breaker
from proxy.failover import Deployment, Failover
from proxy.settings import TeacherSettings
from proxy.upstream import Teacher
from tests.servers import free_port

DIES, HANGS = b"", b"hang"


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


OK = answer(200, b"ok", "X-Mine: yes")


class Place:
    """A deployment that misbehaves as told: each request gets the next of `answers`, and the last one for good."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.got: list[bytes] = []
        self.left = asyncio.Event()  # A connection that hung was closed by the other side.
        self.handlers: set[asyncio.Task[None] | None] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                self.got.append(head + (await reader.readexactly(int(length[1])) if length else b""))
                said = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
                if said == HANGS:
                    await reader.read()
                    self.left.set()
                    break
                writer.write(said)
                if said in (DIES, OK[:12], OK[:-1]):
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self.handle, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await asyncio.gather(*(handler for handler in self.handlers if handler))


class Clock:
    """Time that passes only while somebody waits; keeps the waits."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds


class Several:
    """Several places behind one Failover; jitter is half of what it may be."""

    def __init__(self, failover: Failover, clock: Clock, places: tuple[Place, ...]) -> None:
        self.failover, self.clock, self.places = failover, clock, places

    async def ask(self, method: str = "POST", body: bytes = b"{}") -> tuple[int, bytes, str, int]:
        response = await self.failover.forward(method, "/v1/x", [(b"X-A", b"1")], body)
        return response.status, await response.read(), response.deployment, response.attempts

    @property
    def asked(self) -> list[int]:
        return [len(place.got) for place in self.places]

    @property
    def states(self) -> list[str]:
        return [health.state for health in self.failover.health()]


@contextlib.asynccontextmanager
async def behind(*places: Place | None, retries: int = 0, read_timeout: float = 60.0) -> AsyncIterator[Several]:
    """A running `Failover`, its deployments called a, b, ...; None is one that refuses connections."""
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        deployments = []
        for name, place in zip("abc", places, strict=False):
            url = f"http://127.0.0.1:{free_port()}"
            if place is not None:
                url = await stack.enter_async_context(place.serving())
            teacher = Teacher(TeacherSettings(url=url, read_timeout=read_timeout))
            deployments.append(Deployment(name, teacher, Breaker(lambda: 0.5)))
        failover = Failover(deployments, retries, clock.now, clock.sleep, lambda: 0.5)
        stack.callback(failover.close)
        yield Several(failover, clock, tuple(place or Place() for place in places))
