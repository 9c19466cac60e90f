"""Owns the question how fast the dashboard's figures are on a long log, and what such a log weighs.

    python -m tests.bench.dashboard [--exchanges 10000000]     (make bench-dashboard)

A log is made (`tests.bench.dashboard_log`), in a temporary folder or in --folder, which is kept and used again. Each
query is asked in a connection of its own, once cold (the first query of that connection; the kernel may have the files
in memory) and then --repeats times. What was spent and answered is also read from the tables, and both must agree.
Then `stillroom serve` is started on the log, and every page of its menu is asked for by HTTP and, where Debian's
Chromium is, drawn by it: its first contentful paint, of a page that this process has not shown before, and again.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from proxy.log import Log, open_log
from proxy.migrations import migrate
from proxy.rollups import compact
from proxy.settings import LogSettings
from router.figures import by_model, by_task, charges, charges_by_day, series, totals, unpriced
from router.ledger import report
from router.registry import candidates
from tests.bench.dashboard_log import DAYS, fill, weight
from tests.bench.dashboard_pages import pages

_NEEDED = 3000  # bytes of disk for an exchange, with room for compaction
_MADE = "made.json"
_BY_HAND = """
SELECT count(*), count(*) FILTER (served_by <> 'teacher'), sum(prompt_tokens), sum(completion_tokens),
       quantile_cont(latency_ms, 0.95)
FROM exchanges WHERE path = '/v1/chat/completions'
"""
_SPENT = "SELECT sum(CAST(usd AS DECIMAL(38, 15))), count(*) - count(usd) FROM spend"


@dataclass(frozen=True, slots=True)
class Timed:
    """One question: seconds cold, and the median of the others."""

    name: str
    cold: float
    warm: float


def main() -> int:
    """Make the log where it is not there, measure, print; the exit code says whether sums and tables agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exchanges", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the log here, and use the one that is here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _MADE).exists():
            free = shutil.disk_usage(folder).free
            if free < _NEEDED * arguments.exchanges:
                print(f"{folder} has {free >> 30} GB free: too little for this many exchanges", file=sys.stderr)
                return 1
            _make(folder, arguments.exchanges, arguments.seed)
        agree = _measured(folder / "home", arguments.repeats, json.loads((folder / _MADE).read_text()))
        print("\n| page | HTTP ms, first | again | paint ms, first | again |\n|---|--:|--:|--:|--:|")
        for page in pages(folder):
            shown = [f"{1000 * seconds:,.0f}" if seconds is not None else "-" for seconds in page.seconds]
            print(f"| {page.path} | {' | '.join(shown)} |", flush=True)
    return 0 if agree else 1


def _make(folder: Path, exchanges: int, seed: int) -> None:
    log, began = open_log(LogSettings(), folder / "home"), time.monotonic()
    migrate(log)
    made = fill(log, exchanges, seed, lambda line: print(line, file=sys.stderr, flush=True))
    filled = time.monotonic()
    compact(log)
    log.query("CALL ducklake_flush_inlined_data('lake')")
    facts = {
        "exchanges": exchanges, "until": made.until.isoformat(), "seconds": filled - began,
        "compacting": time.monotonic() - filled,
    }  # fmt: skip
    log.close()
    (folder / _MADE).write_text(json.dumps(facts))


def _measured(folder: Path, repeats: int, facts: dict[str, Any]) -> bool:
    until = datetime.fromisoformat(facts["until"])
    log = open_log(LogSettings(), folder, read_only=True)
    print(f"{facts['exchanges']:,} exchanges of {DAYS} days, made in {facts['seconds']:,.0f} s; sums compacted in "
          f"{facts['compacting']:.1f} s\n\n| what | rows | MB | bytes a row |\n|---|--:|--:|--:|")  # fmt: skip
    for name, rows, size in weight(log, folder):
        print(f"| {name} | {rows:,} | {size / 1e6:,.1f} | {size // rows:,} |" if rows else
              f"| {name} | | {size / 1e6:,.1f} | |")  # fmt: skip
    ((bodies,),) = log.query("SELECT sum(request_bytes + response_bytes) FROM exchanges")
    print(f"| bodies as they went over the wire | | {bodies / 1e6:,.1f} | {bodies // facts['exchanges']:,} |")
    print("\n| question | cold ms | ms |\n|---|--:|--:|")
    for timed in _timed(folder, _questions(until), repeats):
        print(f"| {timed.name} | {1000 * timed.cold:,.0f} | {1000 * timed.warm:,.0f} |")
    agree = _agree(log)
    print(f"\nsums and tables {'agree' if agree else 'DO NOT AGREE'}")
    return agree


def _questions(until: datetime) -> dict[str, Callable[[Log], Any]]:
    month, day = until - timedelta(days=30), until - timedelta(days=1)
    return {
        "totals of all, with percentiles": totals,
        "totals of 30 days": lambda log: totals(log, month, until),
        "series by the hour, 1 day": lambda log: series(log, "hour", day, until),
        "series by the day, 30 days": lambda log: series(log, "day", month, until),
        "series by the day, all, one task": lambda log: series(log, "day", task="task-1"),
        "lines by task, 30 days": lambda log: by_task(log, month, until),
        "most used models, 30 days": lambda log: by_model(log, month, until),
        "charges by task and kind, 30 days": lambda log: charges(log, month, until),
        "charges by day and kind, 30 days": lambda log: charges_by_day(log, month, until),
        "unpriced in 1 day": lambda log: unpriced(log, day, until),
        "the ledger's report": report,
        "candidates": candidates,
        "newest 50 exchanges": lambda log: log.query(
            "SELECT id, ts, task, model, served_by, status FROM exchanges WHERE ts >= ? ORDER BY ts DESC LIMIT 50",
            [day],
        ),
        "from the tables: totals with percentiles": lambda log: log.query(_BY_HAND),
        "from the tables: what was spent": lambda log: log.query(_SPENT),
    }


def _timed(folder: Path, questions: dict[str, Callable[[Log], Any]], repeats: int) -> Sequence[Timed]:
    found = []
    for name, ask in questions.items():
        log, taken = open_log(LogSettings(), folder, read_only=True), []
        for _ in range(1 + repeats):
            began = time.perf_counter()
            ask(log)
            taken.append(time.perf_counter() - began)
        log.close()
        found.append(Timed(name, taken[0], median(taken[1:])))
    return found


def _agree(log: Log) -> bool:
    volume, _, _ = totals(log)
    ((exchanges, served, prompt, completion, _),) = log.query(_BY_HAND)
    ((usd, without),) = log.query(_SPENT)
    found = (volume.exchanges, volume.served, volume.prompt_tokens, volume.completion_tokens)
    spent = sum(line.usd or 0 for line in charges(log))
    return (*found, spent, unpriced(log)) == (exchanges, served, prompt, completion, usd, without)


if __name__ == "__main__":
    sys.exit(main())
