"""A whole Stillroom as a user starts it: `replay-teacher` and `serve` as processes, the rest by commands."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from distiller.sample_traffic import write_traffic
from proxy.traffic_file import Row
from tests.servers import eventually, free_port

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "stillroom"]


@dataclass(frozen=True)
class Deployment:
    """Where a running Stillroom is, and how to ask it things."""

    config: Path
    url: str
    teacher: str
    pid: int
    admin: str

    def run(self, *arguments: str, code: int = 0) -> str:
        """One `stillroom` command; returns what it printed, its error output where it should fail."""
        done = subprocess.run(
            [*PROGRAM, *arguments, "--config", str(self.config)], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str) -> Any:
        """A command's JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def count(self, where: str = "true") -> int:
        """Exchanges in the log."""
        return int(self.json("sql", f"select count(*) as n from exchanges where {where}")[0]["n"])

    def counters(self) -> dict[str, float]:
        """The workers' counters by name, over all their labels."""
        text = httpx.get(f"{self.admin}/metrics", timeout=60).text
        found = re.findall(r"^stillroom_(\w+)_total(?:{.*})? (\S+)$", text, re.MULTILINE)
        return {name: sum(float(value) for other, value in found if other == name) for name, _ in found}

    def children(self, name: str) -> list[int]:
        """Process ids of the named children, such as `controller` or `worker`."""
        found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(self.pid)], capture_output=True, text=True)
        return [int(line.split()[0]) for line in found.stdout.splitlines() if f"stillroom {name}" in line]


@contextmanager
def deployed(
    folder: Path, rows: Sequence[Row], settings: str, environment: Mapping[str, str] = {}
) -> Iterator[Deployment]:
    """Start both processes; `settings` is TOML after the tables that are written here."""
    teacher, traffic = free_port(), folder / "traffic.jsonl"
    write_traffic(rows, traffic)
    with ExitStack() as stack:
        _start(stack, folder / "teacher.log", ["replay-teacher", "--traffic", str(traffic), "--port", str(teacher)], {})
        eventually(lambda: up(f"http://127.0.0.1:{teacher}/v1/models"), 60)
        yield stack.enter_context(in_front_of(teacher, folder, settings, environment))


@contextmanager
def in_front_of(
    teacher: int,
    folder: Path,
    settings: str,
    environment: Mapping[str, str] = {},
    admins: str = "",
    seconds: float = 60,
) -> Iterator[Deployment]:
    """Start `serve` before a teacher that listens on this port already; `admins` are lines of the admin's table.

    It must be up within so many seconds.
    """
    port, admin, config = free_port(), free_port(), folder / "stillroom.toml"
    config.write_text(f'home = "home"\n[teacher]\nurl = "http://127.0.0.1:{teacher}"\nkey_env = "TEST_KEY"\n{settings}')
    ports = f"[admin]\nport = {admin}\n{admins}\n[proxy]\nport = {port}"
    config.write_text(config.read_text().replace("[proxy]", ports))
    with ExitStack() as stack:
        environment = {"TEST_KEY": "sk-test", **environment}
        pid = _start(stack, folder / "serve.log", ["serve", "--config", str(config)], environment)
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: up(f"{url}/healthz") and up(f"http://127.0.0.1:{admin}/readyz"), seconds)
        yield Deployment(config, f"{url}/v1", f"http://127.0.0.1:{teacher}/v1", pid, f"http://127.0.0.1:{admin}")


def up(url: str) -> bool:
    """Whether a GET answers 200."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def _start(stack: ExitStack, log: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    out = stack.enter_context(log.open("w"))
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=ROOT, stdout=out, stderr=out, env={**os.environ, **environment}
    )
    stack.callback(_stop, process)
    return process.pid


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)
