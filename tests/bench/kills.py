"""What is lost or doubled when processes are killed fifty times under load: nothing.

    python -m tests.bench.kills [--kills 10] [--seed 1] [--only KIND]     (make bench-kills; about ten minutes)

Owns the load, the restarts and the account at the end; `tests.bench.moments` says when to kill. KIND counts from 1.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

import httpx

from tests.bench import canned
from tests.bench.measure import upstream
from tests.bench.moments import Kill, Kind, Missed, all_kinds, home, logged, state
from tests.deployment import Deployment, in_front_of, up
from tests.servers import eventually

SETTINGS = "[proxy]\nworkers = 2\n[spool]\nrotate_mb = 1\nrotate_seconds = {0}\n[serving]\nport = 1\n"
REQUESTS, CONCURRENCY = 2000, 16
_CHUNKS, _BYTES = 12, 12_000
_PAUSE = 0.02  # seconds between two requests of a connection
_RESTART_SECONDS = 120.0
_SETTLE_SECONDS = 240.0


@dataclass(slots=True)
class Flow:
    """What the clients saw."""

    asked: int = 0
    failed: int = 0
    whole: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Row:
    """A kind's outcome."""

    kills: Sequence[Kill]
    asked: int
    whole: int
    failed: int
    logged: int
    missing: int
    doubled: int
    wrong: Sequence[str]


def run(kind: Kind, kills: int, rng: Random, folder: Path) -> Row:
    """So many kills of one kind on a deployment of its own."""
    settings = SETTINGS.format(kind.rotate_seconds)
    with upstream(folder, 1) as teacher, in_front_of(teacher, folder, settings) as deployment:
        eventually(lambda: up(f"{deployment.admin}/healthz"), 60)
        flow, done, over = Flow(), list[Kill](), threading.Event()
        pouring = threading.Thread(target=lambda: asyncio.run(_pour(deployment.url, flow, over)))
        pouring.start()
        try:
            for _ in range(4 * kills):
                if len(done) < kills and (hit := _hit(deployment, kind, rng)):
                    done.append(hit)
                    print(f"{kind.name}: kill {len(done)}, {hit.point}", file=sys.stderr, flush=True)
        finally:
            over.set()
            pouring.join()
        return _account(deployment, kind, flow, done, kills)


def _hit(deployment: Deployment, kind: Kind, rng: Random) -> Kill | None:
    before = set(deployment.children(kind.child)) if kind.child else set()
    try:
        pid, point = kind.moment(deployment, rng)
    except Missed:
        return None
    started, left = time.monotonic(), state(home(deployment))
    if not kind.child:
        return Kill(point, left, None)
    eventually(lambda: _works(deployment, kind.child, before - {pid}), _RESTART_SECONDS)
    return Kill(point, left, time.monotonic() - started)


def _works(deployment: Deployment, child: str, before: set[int]) -> bool:
    """Whether there is a new process and it is at work: a worker by its counters, the controller by its port."""
    fresh = set(deployment.children(child)) - before
    if child == "worker":
        return any((home(deployment) / "state" / "metrics" / f"counter_{pid}.db").exists() for pid in fresh)
    return bool(fresh) and up(f"{deployment.admin}/healthz")


async def _pour(url: str, flow: Flow, over: threading.Event) -> None:
    """Ask until it is over, and for REQUESTS at least; every other answer is a stream."""
    numbers = count()

    async def one(client: httpx.AsyncClient) -> None:
        while not over.is_set() or flow.asked < REQUESTS:
            flow.asked += 1
            streamed = next(numbers) % 2 == 1
            await _ask(client, url, flow, streamed)
            await asyncio.sleep(_PAUSE)

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(CONCURRENCY)))


async def _ask(client: httpx.AsyncClient, url: str, flow: Flow, streamed: bool) -> None:
    question = canned.question(_BYTES, _CHUNKS if streamed else 0)
    try:
        answer = await client.post(f"{url}/chat/completions", content=question)
        text = canned.text_of(answer.content, streamed)
    except (httpx.TransportError, ValueError, KeyError, IndexError):
        flow.failed += 1
        return
    if answer.status_code == 200 and text:
        flow.whole.add(answer.headers["x-stillroom-exchange"])
    else:
        flow.failed += 1


def _account(deployment: Deployment, kind: Kind, flow: Flow, kills: Sequence[Kill], wanted: int) -> Row:
    folder, wrong = home(deployment), list[str]()

    def settled() -> bool:
        left = state(folder)
        return not left.open_bytes and not left.closed

    try:
        eventually(settled, _SETTLE_SECONDS)
    except AssertionError:
        wrong.append(f"the spool did not empty: {state(folder)}")
    rows, charged = logged(folder, "id FROM exchanges"), logged(folder, "id FROM spend")
    missing, doubled = len(flow.whole - set(rows)), len(rows) - len(set(rows)) + len(charged) - len(set(charged))
    counters = deployment.counters()
    unaccounted = counters["requests"] - counters["captured"] - counters.get("dropped", 0)
    ours = kind.child == "worker"  # Only then may clients notice, and requests under way go with their process.
    checks = {
        "exchanges are missing": missing,
        "exchanges or charges are twice in the log": doubled,
        "kills did not happen": wanted - len(kills),
        "requests failed, though no worker was killed": 0 if ours else flow.failed,
        "requests failed, more than were under way": max(0, flow.failed - CONCURRENCY * len(kills)),
        "requests are not accounted for": max(0, int(unaccounted) - (CONCURRENCY * len(kills) if ours else 0)),
        "exchanges were dropped": int(counters.get("dropped", 0)),
        "exchanges are captured and not in the log": max(0, int(counters["captured"]) - len(rows)),
        "exchanges are in the log and not captured": max(
            0, len(rows) - int(counters["captured"]) - (len(kills) if ours else 0)
        ),
    }
    wrong += [f"{number} {what}" for what, number in checks.items() if number]
    return Row(kills, flow.asked, len(flow.whole), flow.failed, len(rows), missing, doubled, wrong)


def main() -> int:
    """Run every kind and print; the exit code says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each kind (default: 10)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="KIND", help="this row of the table, from 1")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kinds = all_kinds()[arguments.only - 1 : arguments.only] if arguments.only else all_kinds()
    rows: dict[str, Row] = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            rng = Random(f"{arguments.seed}:{kind.name}")
            rows[kind.name] = run(kind, arguments.kills, rng, Path(folder))
    print(_listing(rows), _summary(rows), sep="\n\n")
    wrong = [f"{name}: {what}" for name, row in rows.items() if row for what in row.wrong]
    print(f"{len(wrong)} findings", *wrong, sep="\n")
    return 1 if wrong else 0


def _listing(rows: dict[str, Row]) -> str:
    lines = [
        "| killed | where it was hit | open segments, kB | closed | ingested | restart, s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        for kill in row.kills:
            sizes = " + ".join(str(size // 1000) for size in kill.state.open_bytes) or "-"
            cells = name, kill.point, sizes, len(kill.state.closed), kill.state.ingested, _seconds(kill.restart)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _summary(rows: dict[str, Row]) -> str:
    head = ("killed", "kills", "where", "requests", "answered whole", "failed", "in the log", "missing", "doubled")
    lines = [f"| {' | '.join((*head, 'restart s, median / most'))} |", f"|---|--:|---|{'--:|' * 7}"]
    for name, row in rows.items():
        where = ", ".join(f"{point} {number}" for point, number in Counter(kill.point for kill in row.kills).items())
        times = [kill.restart for kill in row.kills if kill.restart is not None]
        restart = f"{_seconds(median(times))} / {_seconds(max(times))}" if times else "-"
        cells = row.asked, row.whole, row.failed, row.logged, row.missing, row.doubled
        numbers = " | ".join(f"{number:,}" for number in cells)
        lines.append(f"| {name} | {len(row.kills)} | {where} | {numbers} | {restart} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
