"""Owns one measurement of one peer: the steps, the CPU time before and after, the check of what was captured.

Must not know what the figures are made into.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from proxy.supervisor import end_with_parent
from tests.bench.load import Plan, Result
from tests.bench.peers import Peer, check_captured, settled
from tests.bench.processes import ROOT, Failed, cpu_us, running
from tests.servers import free_port

_READY_SECONDS = 180.0
_INGEST_SECONDS = 600.0
_REST_SECONDS = 0.3  # what a proxy does after the last answer belongs to the requests


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of load; the fields are those of `Plan`."""

    name: str
    connections: int
    size: int
    chunks: int = 0
    most: int = 10**9


PLAIN = Step("1 kB, 32 connections", 32, 1000)
LARGE = Step("30 kB, 32 connections", 32, 30_000, most=20_000)  # More would fill the disk and tell nothing new.
ALONE = Step("1 kB, 1 connection", 1, 1000)
FIRST = Step("1 stream", 1, 1000, chunks=4)  # Short ones, as only the first chunk is timed.
STREAMS = Step("16 streams", 16, 1000, chunks=60)
STEPS = (PLAIN, LARGE, ALONE, FIRST, STREAMS)


@dataclass(frozen=True, slots=True)
class Sample:
    """A step's result, with the CPU microseconds it took the proxy, and the controller beside it."""

    result: Result
    cpu_us: float
    controller_us: float


@contextmanager
def upstream(folder: Path, core: int) -> Iterator[int]:
    """The canned teacher, on the core of the load; yields its port."""
    port, log = free_port(), folder / "upstream.log"
    with running([sys.executable, "-m", "tests.bench.upstream", str(port)], {core}, log) as process:
        _await_port(process, port)
        yield port


@contextmanager
def proxied(
    peer: Peer, folder: Path, teacher: int, cores: list[int]
) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """The peer in front of the teacher; yields its process and port. A failure brings the end of its log along."""
    port, log = free_port(), folder / "peer.log"
    assert peer.prepare is not None
    command = peer.prepare(folder, port, teacher)
    try:
        with running(command, set(cores[: peer.cores]), log, peer.environment) as process:
            _await_port(process, port)
            yield process, port
    except Failed as failure:
        raise Failed(f"{failure}\n{_tail(log)}".rstrip()) from None


def measure(
    peer: Peer, folder: Path, teacher: int, cores: list[int], seconds: float, tell: Callable[[str], None]
) -> dict[str, Sample]:
    """Start the peer, warm it up, take every step and stop it; by the step's name. Failed when anything is wrong."""
    if peer.prepare is None:
        load(peer, PLAIN, teacher, 0.5)
        return {step.name: _step(peer, step, teacher, None, folder, seconds, tell) for step in STEPS}
    with proxied(peer, folder, teacher, cores) as (process, port):
        tell("warm-up")
        requests = sum(load(peer, step, port, max(0.5, seconds / 5)).requests for step in (PLAIN, STREAMS))
        _ingested(peer, folder)
        taken = {}
        for step in STEPS:
            taken[step.name] = _step(peer, step, port, process.pid, folder, seconds, tell)
            requests += taken[step.name].result.requests
    if peer.captures:
        check_captured(folder, requests)
    return taken


def _step(
    peer: Peer, step: Step, port: int, pid: int | None, folder: Path, seconds: float, tell: Callable[[str], None]
) -> Sample:
    tell(step.name)
    before = cpu_us(pid) if pid else (0.0, 0.0)
    result = load(peer, step, port, seconds)
    time.sleep(_REST_SECONDS)
    proxy = cpu_us(pid)[0] if pid else 0.0  # Now, as idling while the controller works is no request's cost.
    _ingested(peer, folder)
    controller = cpu_us(pid)[1] if pid else 0.0
    return Sample(result, proxy - before[0], controller - before[1])


def load(peer: Peer, step: Step, port: int, seconds: float) -> Result:
    """Ask for so long, or until the step's number of requests; Failed for any wrong answer."""
    plan = Plan(port, step.connections, seconds, step.size, step.chunks, step.most, peer.exact)
    command = [sys.executable, "-m", "tests.bench.load", json.dumps(asdict(plan))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=end_with_parent)
    if done.returncode:
        raise Failed(f"{step.name}: {done.stderr.strip() or f'the load ended with {done.returncode}'}")
    return Result(**json.loads(done.stdout))


def _ingested(peer: Peer, folder: Path) -> None:
    """Wait for the controller: the next step must not meet it at the last one's records."""
    deadline = time.monotonic() + _INGEST_SECONDS
    while peer.captures and not settled(folder):
        if time.monotonic() > deadline:
            raise Failed(f"not everything was ingested after {_INGEST_SECONDS:.0f} s")
        time.sleep(0.1)


def _await_port(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"ended at its start with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise Failed(f"does not listen after {_READY_SECONDS:.0f} s")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-8:]
    return "\n".join(f"    | {line}" for line in lines)
