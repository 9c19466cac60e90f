"""Owns the load: so many connections that ask one after the other, every answer checked, as cheap as Python allows.

    python -m tests.bench.load '{"port": 8080, "connections": 32, "seconds": 5, ...}'   (the fields of `Plan`)

Prints the `Result` as JSON; a wrong answer ends it with one line and exit code 1. Must not know who answers.
"""

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import cast

import uvloop

from tests.bench import canned

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_PATIENCE = 90.0  # seconds beyond the plan's own, for a proxy that is still starting


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask: `size` bytes a request, `chunks` a streamed answer (0: plain), until `seconds` or `most` requests.

    `exact`: the proxy has to pass the upstream's bytes through; otherwise only the text must be the same.
    """

    port: int
    connections: int
    seconds: float
    size: int
    chunks: int
    most: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What came back; times in milliseconds, `first` to the first byte of a body. `requests` counts the probe too."""

    requests: int
    per_second: float
    p50: float
    p99: float
    first_p50: float


class WrongAnswer(Exception):
    """The proxy did not answer as it has to."""


class Run:
    """Answers of one plan as they come; `length` of a body, once known, holds for all of them."""

    def __init__(self, request: bytes, until: float, most: int, length: int | None) -> None:
        self._request, self._until, self._most, self._length = request, until, most, length
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.body = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = self._open = 0

    def opened(self) -> None:
        """One more connection takes part."""
        self._open += 1

    def next(self) -> bytes | None:
        """What to send now; None when it is enough."""
        if self._asked < self._most and perf_counter() < self._until:
            self._asked += 1
            return self._request
        self._open -= 1
        if not self._open and not self.ended.done():
            self.ended.set_result(None)
        return None

    def answered(self, body: bytes, first: float, latency: float) -> None:
        """Take a whole answer with a status of 200."""
        if self._length is not None and len(body) != self._length:
            self.fail(f"an answer of {len(body)} bytes, not {self._length}")
        self.body = body
        self.firsts.append(first)
        self.latencies.append(latency)

    def fail(self, reason: str) -> None:
        """End the run."""
        if not self.ended.done():
            self.ended.set_exception(WrongAnswer(reason))


class Asking(asyncio.Protocol):
    """One connection: asks, reads to the end of the answer, asks again."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._received = b""
        self._started = self._first = 0.0
        self._start, self._size = 0, 0  # of the body; a size of 0 means chunked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance.
        self._run.opened()

    def connection_lost(self, error: Exception | None) -> None:
        if self._started:
            self._run.fail(f"hung up in the middle: {self._received[:200]!r}")

    def ask(self) -> None:
        """Send the next request, or hang up."""
        request = self._run.next()
        self._received, self._first, self._started = b"", 0.0, 0.0
        if request is None:
            self._transport.close()
        else:
            self._started = perf_counter()
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        if not self._first:
            end = received.find(b"\r\n\r\n") + 4
            if end < 4:
                return None
            if not received.startswith(b"HTTP/1.1 200 "):
                return self._run.fail(f"not a 200: {received[:300]!r}")
            if len(received) == end:
                return None
            self._first = perf_counter()
            declared = _LENGTH.search(received, 0, end)
            self._start, self._size = end, int(declared[1]) if declared else 0
        if self._size:
            if len(received) < self._start + self._size:
                return None
            body = received[self._start :]
        elif received.endswith(_LAST_CHUNK):
            body = _unchunked(received, self._start)
        else:
            return None
        self._run.answered(body, self._first - self._started, perf_counter() - self._started)
        return self.ask()


def _unchunked(received: bytes, start: int) -> bytes:
    parts = []
    while True:
        line = received.index(b"\r\n", start)
        size = int(received[start:line].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(received[line + 2 : line + 2 + size])
        start = line + 2 + size + 2


async def measure(plan: Plan) -> Result:
    """Ask once and look at the answer closely, then do the plan."""
    body = canned.question(plan.size, plan.chunks)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{plan.port}\r\nauthorization: Bearer sk-bench\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    probe = await _run(plan.port, 1, Run(request, perf_counter() + _PATIENCE, 1, None), _PATIENCE)
    _check(probe.body, plan)
    started = perf_counter()
    run = Run(request, started + plan.seconds, plan.most, len(probe.body))
    await _run(plan.port, plan.connections, run, plan.seconds + _PATIENCE)
    took = perf_counter() - started
    done = len(run.latencies)
    return Result(
        done + 1, done / took, _ms(run.latencies, 0.5), _ms(run.latencies, 0.99), _ms(run.firsts, 0.5)
    )  # fmt: skip


async def _run(port: int, connections: int, run: Run, patience: float) -> Run:
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Asking(run), "127.0.0.1", port) for _ in range(connections)]
    for number, (_, asking) in enumerate(opened):
        loop.call_later(number * 0.001, asking.ask)  # Streams that start together would stay in step.
    try:
        await asyncio.wait_for(run.ended, patience)
    except TimeoutError:
        raise WrongAnswer(f"no end after {patience:.0f} s") from None
    return run


def _check(body: bytes, plan: Plan) -> None:
    expected = b"".join(canned.events(plan.chunks)) if plan.chunks else canned.answer()
    streamed = plan.chunks > 0
    if plan.exact and body != expected:
        raise WrongAnswer(f"the answer is not what the upstream sent: {body[:300]!r}")
    try:
        text = canned.text_of(body, streamed)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WrongAnswer(f"no chat completion ({error!r}): {body[:300]!r}") from None
    if text != canned.text_of(expected, streamed):
        raise WrongAnswer(f"the answer's text is not what the upstream sent: {text[:300]!r}")


def _ms(values: Sequence[float], share: float) -> float:
    return round(sorted(values)[int(len(values) * share)] * 1000, 4)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(uvloop.run(measure(Plan(**json.loads(sys.argv[1])))))))
    except (WrongAnswer, OSError) as error:
        sys.exit(str(error))
