"""Owns the servers of a run: an upstream, and a real Stillroom in front of it that lets clients' own keys through.

Must not know who calls, nor what is compared.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from distiller.base import DEFAULT_BASE, resolve_base
from distiller.sample_traffic import write_traffic
from distiller.serving import EngineSettings, engine_command
from tests.bench.peers import check_captured
from tests.bench.processes import Failed, running
from tests.conformance.calls import KEY, MODEL, recorded
from tests.conformance.clients import KEPT
from tests.deployment import PROGRAM
from tests.servers import free_port

_STILLROOM = """
home = "home"
[proxy]
port = {port}
[admin]
port = {admin}
[teacher]
url = "{teacher}"
"""
_START_SECONDS = 900.0
_COUNTED = re.compile(r"^stillroom_(requests|captured|opted_out|dropped)_total(?:\{.*\})? ([\d.e+]+)$", re.MULTILINE)
# Called with a folder of its own; a server at the URL it yields, with the /v1.
Upstream = Callable[[Path], AbstractContextManager[str]]


@dataclass(slots=True)
class Captured:
    """How many requests there were, each of them one record on disk; known once the proxy has stopped."""

    requests: int = 0


@contextmanager
def replay_teacher(folder: Path) -> Iterator[str]:
    """The replay teacher over the recorded answers."""
    port, traffic = free_port(), folder / "traffic.jsonl"
    write_traffic(recorded(), traffic)
    command = [*PROGRAM, "replay-teacher", "--traffic", str(traffic), "--port", str(port), "--model", MODEL]
    with running(command, os.sched_getaffinity(0), folder / "replay.log") as process:
        url = f"http://127.0.0.1:{port}/v1"
        _wait(f"{url}/models", process.poll, folder / "replay.log")
        yield url


@contextmanager
def vllm(folder: Path) -> Iterator[str]:
    """vLLM on this CPU with the small base model; no prefix cache: the second answer could differ."""
    base, log, port = resolve_base(DEFAULT_BASE, KEPT / "bases"), folder / "vllm.log", free_port()
    more = ["--served-model-name", MODEL, "--api-key", KEY, "--no-enable-prefix-caching", "--seed", "0"]
    more += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    # In bfloat16 what else is in the batch decides near ties, and two direct runs would differ.
    settings = EngineSettings(base, port, "float32", log, extra_args=tuple(more))
    command, environment = engine_command(settings)
    environment = {**environment, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin would starve clients and proxy
    with running(command, os.sched_getaffinity(0), log, environment) as process:
        _wait(f"http://127.0.0.1:{port}/health", process.poll, log)
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def stillroom(folder: Path, teacher: str) -> Iterator[tuple[str, Captured]]:
    """`stillroom serve` with capture; at the end, every request must be one record on disk. Failed otherwise."""
    port, admin, log = free_port(), free_port(), folder / "serve.log"
    config = folder / "stillroom.toml"
    config.write_text(_STILLROOM.format(port=port, admin=admin, teacher=teacher))
    captured = Captured()
    with running([*PROGRAM, "serve", "--config", str(config)], os.sched_getaffinity(0), log) as process:
        _wait(f"http://127.0.0.1:{port}/healthz", process.poll, log)
        yield f"http://127.0.0.1:{port}/v1", captured
        captured.requests = _counted(f"http://127.0.0.1:{admin}/metrics")
    check_captured(folder, captured.requests)


def _counted(url: str) -> int:
    """The number of requests, once all are captured; Failed when one was not."""
    counts: Counter[str] = Counter()
    for _ in range(100):
        counts = Counter()
        for name, value in _COUNTED.findall(httpx.get(url).text):
            counts[name] += int(float(value))
        if counts["requests"] == counts["captured"] == counts.total() / 2:
            return counts["requests"]
        time.sleep(0.1)
    raise Failed(f"not every request was captured: {dict(counts)}")


def _wait(url: str, code: Callable[[], int | None], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if code() is not None:
            raise Failed(f"it did not start: {log.read_text()[-2000:]}")
        try:
            if httpx.get(url, headers={"authorization": f"Bearer {KEY}"}).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise Failed(f"it did not answer within {_START_SECONDS:g} s: {log.read_text()[-2000:]}")
