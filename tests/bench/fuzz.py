"""What a real deployment does with 100,000 broken requests: no 5xx of its own, no hang, no exchange lost or invented.

    python -m tests.bench.fuzz [--seed 1] [--requests 100000] [--only CASE]    (make bench-fuzz; about five minutes)

Owns the run and its judgement of every answer; `tests.mutations` says what is sent, `tests.strict` what that means.
"""

import argparse
import asyncio
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import httpx
import uvloop

from proxy.log import open_log
from proxy.settings import LogSettings
from proxy.usage import ask_for_usage
from tests.bench.marked import MARK, Heard, answer, fingerprint, is_stream, marked_upstream, status
from tests.deployment import Deployment, in_front_of, up
from tests.hostile import Answer
from tests.mutations import Case, make_case
from tests.servers import eventually
from tests.strict import Reading, Request, read_all

SETTINGS = "[proxy]\nworkers = 1\nmax_body_mb = 1\n[spool]\nrotate_seconds = 0.5\n[serving]\nport = 1\n"
CONNECTIONS = 24
BOUND = 20.0  # seconds within which every connection is answered or closed, and the health endpoint answers
_ALLOWED = 1.1  # of the worker's memory, as in tests.bench.memory
_ABORT = struct.pack("ii", 1, 0)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_IDS = "SELECT id FROM exchanges"
_ERRORS = "SELECT error || ' for ' || request FROM exchanges WHERE error LIKE 'upstream%'"
_ENOUGH = 20  # findings
_STREAMS_WITH_USAGE = ("/v1/chat/completions", "/v1/completions")


@dataclass(slots=True)
class Tally:
    """What was done and seen."""

    requests: int = 0
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    sent: Counter[bytes] = field(default_factory=Counter)
    kept: set[str] = field(default_factory=set)  # exchanges whose last byte arrived
    opted_out: set[str] = field(default_factory=set)
    slowest_health: float = 0.0
    memory: list[float] = field(default_factory=list)


class Fuzz:
    """One run against the deployment at `port`, whose teacher is `heard`'s."""

    def __init__(self, seed: int, port: int, heard: Heard) -> None:
        self.tally = Tally()
        self._seed, self._port, self._heard = seed, port, heard

    async def run(self, requests: int, first: int, worker: int) -> None:
        """Send at least so many changed requests, from case `first` on; watch health and the worker's memory."""
        watching = asyncio.create_task(self._watch())
        numbers = iter(range(first, sys.maxsize))

        async def connection() -> None:
            for number in numbers:
                tally = self.tally
                if tally.requests >= requests or len(tally.findings) >= _ENOUGH:
                    return
                case = make_case(self._seed, number)
                tally.requests += case.mutated
                tally.cases += 1
                if tally.requests * 20 // requests > len(tally.memory):
                    tally.memory.append(_resident_mb(worker))
                    print(f"{tally.requests:8,} requests  {tally.memory[-1]:7.1f} MB", file=sys.stderr, flush=True)
                await self._one(number, case)

        await asyncio.gather(*(connection() for _ in range(CONNECTIONS if requests > 1 else 1)))
        watching.cancel()

    async def _watch(self) -> None:
        async with httpx.AsyncClient(timeout=BOUND) as client:
            while True:
                started = time.perf_counter()
                try:
                    (await client.get(f"http://127.0.0.1:{self._port}/healthz")).raise_for_status()
                except httpx.HTTPError as error:
                    self.tally.findings.append(f"the health endpoint: {error!r}")
                self.tally.slowest_health = max(self.tally.slowest_health, time.perf_counter() - started)
                await asyncio.sleep(0.25)

    async def _one(self, number: int, case: Case) -> None:
        reading = read_all(case.data)
        self.tally.sent.update(_expected(request) for request in reading.requests)
        answers: list[Answer] = []
        ended = await _talk(self._port, case, reading, answers)
        wrong = [self._wrong(answer, reading, place) for place, answer in enumerate(answers)]
        if not case.leave:
            wrong.append(_wrong_end(ended, reading, answers))
        for what in list(filter(None, wrong))[:1]:
            said = [(answer.status, answer.headers.get(MARK)) for answer in answers]
            self.tally.findings.append(f"case {number}: {what}\n  sent {case.data[:2000]!r}\n  got {said}, {ended}")

    def _wrong(self, given: Answer, reading: Reading, place: int) -> str | None:
        """What is wrong with the answer at this place of a connection."""
        marked = given.headers.get(MARK)
        self.tally.answers[f"{'teacher' if marked else 'Stillroom'} {given.status}"] += 1
        if marked is None:
            return "a 5xx of our own" if given.status >= 500 else None
        if place >= len(reading.requests):
            return "the teacher was asked, but no request was sent"
        request, heard = reading.requests[place], int(marked)
        off = next((value for name, value in request.headers if name == b"x-stillroom-capture"), b"") == b"off"
        exchanges = self.tally.opted_out if off else self.tally.kept
        if given.exchange in exchanges:
            return "an exchange id was given twice"
        exchanges.add(given.exchange)
        if self._heard.fingerprints[heard] != _expected(request):
            return f"the teacher heard something else: {self._heard.texts[heard]}"
        streamed = is_stream(request.body)
        whole = given.body.endswith(b"data: [DONE]\n\n") if streamed else given.body == answer(heard, False)
        if given.status != status(heard, streamed) or not (whole or request.method == "HEAD"):
            return "the answer is not what the teacher sent"
        return None


def _wrong_end(ended: str, reading: Reading, answers: Sequence[Answer]) -> str | None:
    if ended in ("silent", "garbled"):
        return f"the connection was {ended}"
    if reading.broken or len(answers) >= len(reading.requests):
        return None
    if any(each.headers.get("connection") == "close" or MARK not in each.headers for each in answers):
        return None
    # What is refused in the middle of its arrival may see the connection reset before it sees why.
    request = reading.requests[len(answers)]
    refused = request.method not in _METHODS or any(name == b"upgrade" for name, _ in request.headers)
    return None if refused else "the connection was closed without a word"


def _expected(request: Request) -> bytes:
    """The fingerprint of what the teacher must hear."""
    target = request.target
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    target = target.partition("#")[0]
    path, _, query = target.partition("?")
    body = ask_for_usage(request.body) if unquote(path) in _STREAMS_WITH_USAGE else None
    return fingerprint(request.method, f"{path}?{query}" if query else path, body or request.body)


async def _talk(port: int, case: Case, reading: Reading, answers: list[Answer]) -> str:
    """Send the case and read what comes; how it ended: answered, closed, left, silent or garbled."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 21)
    if case.leave == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    sending = asyncio.create_task(_send(writer, case))
    try:
        async with asyncio.timeout(BOUND):
            if case.leave in ("close", "reset", "early"):
                await sending
                with suppress(OSError):  # TimeoutError is one.
                    await asyncio.wait_for(reader.read(200), 0 if case.leave == "early" else 0.02)
                return "left"
            wanted = len(reading.requests) if not reading.broken and not case.leave else sys.maxsize
            while len(answers) < wanted:
                given = await _answer(reader, _method(reading, len(answers)))
                if given.status >= 200:
                    answers.append(given)
            await sending
            return "answered"
    except TimeoutError:
        return "silent"
    except (asyncio.IncompleteReadError, OSError):
        return "closed"
    except (ValueError, IndexError, asyncio.LimitOverrunError):
        return "garbled"
    finally:
        sending.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, case: Case) -> None:
    with suppress(OSError):
        for piece in case.pieces:
            if writer.is_closing():
                return
            writer.write(piece)
            await writer.drain()
            if case.pause:
                await asyncio.sleep(case.pause)
        if case.leave == "half" and not writer.is_closing():
            writer.write_eof()


def _method(reading: Reading, place: int) -> str:
    return reading.requests[place].method if place < len(reading.requests) else ""


async def _answer(reader: asyncio.StreamReader, method: str) -> Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
    code = int(first.removeprefix("HTTP/1.1 ")[:3])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if method == "HEAD" or code < 200 or code in (204, 304):
        return Answer(code, headers, b"")
    if headers.get("transfer-encoding") != "chunked":
        return Answer(code, headers, await reader.readexactly(int(headers["content-length"])))
    body = b""
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return Answer(code, headers, body)


def lost(tally: Tally, heard: Heard, deployment: Deployment) -> list[str]:
    """After the run: what the log, the counters and the teacher say that the client does not."""
    strangers = [text for each, text in zip(heard.fingerprints, heard.texts, strict=True) if each not in tally.sent]
    often = Counter(heard.fingerprints) - tally.sent
    found = [f"the teacher heard what nobody sent: {text}" for text in strangers[:5]]
    found += ["the teacher heard a request more often than it was sent"] * (bool(often) and not strangers)
    found += [f"the teacher heard what is no request: {data[:300]!r}" for data in heard.broken[:5]]
    counted: dict[str, float] = {}

    def settled() -> bool:
        counted.update(deployment.counters())
        kept = counted["captured"] + counted.get("opted_out", 0) + counted.get("dropped", 0)
        return counted["requests"] == kept and len(_queried(deployment, _IDS)) >= counted["captured"]

    try:
        eventually(settled, 120)
    except AssertionError:
        found.append(f"the counters do not add up to the log: {counted}")
    rows = _queried(deployment, _IDS)
    logged = set(rows)
    wrong = {
        "exchanges are twice in the log": len(rows) - len(logged),
        "exchanges are the difference between captured and the log": abs(len(rows) - int(counted["captured"])),
        "exchanges a client saw whole are not in the log": len(tally.kept - logged),
        "exchanges are in the log against the client's wish": len(tally.opted_out & logged),
        "exchanges were dropped": int(counted.get("dropped", 0)),
    }
    found += [f"recorded: {error[:500]}" for error in _queried(deployment, _ERRORS)]
    return found + [f"{number} {what}" for what, number in wrong.items() if number]


def _queried(deployment: Deployment, query: str) -> list[str]:
    """The first column of a query of the log."""
    log = open_log(LogSettings(), deployment.config.parent / "home", read_only=True)
    try:
        return [str(row[0]) for row in log.query(query)]
    finally:
        log.close()


def fuzz(seed: int, requests: int, first: int, folder: Path) -> tuple[Tally, list[str]]:
    """A whole run on a deployment of its own; what was seen, and everything that was wrong."""
    return uvloop.run(_fuzz(seed, requests, first, folder))


async def _fuzz(seed: int, requests: int, first: int, folder: Path) -> tuple[Tally, list[str]]:
    async with marked_upstream() as (teacher, heard):
        deploying = in_front_of(teacher, folder, SETTINGS)
        deployment = await asyncio.to_thread(deploying.__enter__)
        try:
            workers = deployment.children("worker")
            await asyncio.to_thread(eventually, lambda: up(f"{deployment.admin}/healthz"), 60)
            run = Fuzz(seed, httpx.URL(deployment.url).port or 0, heard)
            await run.run(requests, first, workers[0])
            wrong = [*run.tally.findings, *await asyncio.to_thread(lost, run.tally, heard, deployment)]
            if deployment.children("worker") != workers:
                wrong.append("the worker was started again")
        finally:
            await asyncio.to_thread(deploying.__exit__, None, None, None)
    errors = re.findall(r"^Traceback.*(?:\n .*)*\n(.*)$", (folder / "serve.log").read_text(), re.MULTILINE)
    return run.tally, wrong + [f"{number} times in serve.log: {line}" for line, number in Counter(errors).items()]


def _resident_mb(pid: int) -> float:
    with suppress(FileNotFoundError):
        return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) / 1024
    return 0.0


def main() -> int:
    """Run and print; the exit code says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=100_000, help="changed ones (default: 100,000)")
    parser.add_argument("--only", type=int, metavar="CASE", help="this case of the seed, alone")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.perf_counter()
    alone = arguments.only is not None
    with tempfile.TemporaryDirectory() as folder:
        tally, wrong = fuzz(arguments.seed, 1 if alone else arguments.requests, arguments.only or 0, Path(folder))
    print(_table(arguments.seed, tally, time.perf_counter() - started))
    if not alone:
        base = max(tally.memory[: len(tally.memory) // 5])
        if tally.memory[-1] > _ALLOWED * base:
            wrong.append(f"the worker's memory grew from {base:.1f} to {tally.memory[-1]:.1f} MB")
    print(f"{len(wrong)} findings", *wrong, sep="\n")
    return 1 if wrong else 0


def _table(seed: int, tally: Tally, seconds: float) -> str:
    memory = f"{tally.memory[0]:.1f}, highest {max(tally.memory):.1f}, at the end {tally.memory[-1]:.1f}"
    rows = [
        ("seed", str(seed)),
        ("changed requests, connections", f"{tally.requests:,}, {tally.cases:,}"),
        *((f"answered: {name}", f"{number:,}") for name, number in sorted(tally.answers.items())),
        ("exchanges seen whole, opted out", f"{len(tally.kept):,}, {len(tally.opted_out):,}"),
        ("slowest answer of /healthz, ms", f"{tally.slowest_health * 1000:.0f}"),
        ("the worker's memory, MB", memory),
        ("seconds", f"{seconds:.0f}"),
    ]
    return "\n".join(["| | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    sys.exit(main())
