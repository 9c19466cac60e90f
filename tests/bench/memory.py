"""Owns the question whether a worker's memory stays flat over 200,000 requests, large and abandoned ones among them.

    python -m tests.bench.memory        (make bench-memory; about five minutes)

Prints the worker's resident memory after every round. Fails where the last round stands more than 10 % above the first
fifth, or where an exchange was not captured.
"""

import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.bench import canned
from tests.bench.measure import LARGE, PLAIN, load, proxied, upstream
from tests.bench.peers import Peer, all_peers, check_captured
from tests.bench.processes import Failed

ROUNDS = 20
PLAIN_EACH, LARGE_EACH, ABANDONED_EACH = 8_400, 1_500, 100
_ALLOWED = 1.1
_LONG = 600.0  # seconds; the number of requests ends a step


def main() -> int:
    """Run the rounds; the exit code says whether memory stayed flat."""
    (peer,) = (peer for peer in all_peers() if peer.name == "stillroom")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            with upstream(folder, 1) as teacher, proxied(peer, folder, teacher, [0, 1]) as (process, port):
                curve, requests = [], 0
                for _ in range(ROUNDS):
                    requests += _round(peer, port)
                    curve.append(_resident_mb(process.pid))
                    print(f"{requests:8,} requests  {curve[-1]:7.1f} MB", flush=True)
            check_captured(folder, requests)
        except Failed as failure:
            print(failure, file=sys.stderr)
            return 1
    base = max(curve[: ROUNDS // 5])
    print(f"after the first fifth {base:.1f} MB, at the end {curve[-1]:.1f} MB: {curve[-1] / base - 1:+.1%}")
    return 0 if curve[-1] <= _ALLOWED * base else 1


def _round(peer: Peer, port: int) -> int:
    """One round of every kind of request; how many there were, a probe at the start of each load included."""
    asked = load(peer, replace(PLAIN, most=PLAIN_EACH), port, _LONG).requests
    asked += load(peer, replace(LARGE, most=LARGE_EACH), port, _LONG).requests
    for _ in range(ABANDONED_EACH):
        _abandon(port)
    return asked + ABANDONED_EACH


def _abandon(port: int) -> None:
    """Ask for a stream, take its first bytes and go."""
    body = canned.question(1000, 60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        if not connection.recv(100).startswith(b"HTTP/1.1 200"):
            raise Failed("a stream was not answered")


def _resident_mb(supervisor: int) -> float:
    """The worker's resident memory, proc(5)."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
            if int(fields["PPid"]) == supervisor and b"worker" in command:
                return int(fields["VmRSS"].split()[0]) / 1024
    raise Failed("the worker is gone")


if __name__ == "__main__":
    sys.exit(main())
