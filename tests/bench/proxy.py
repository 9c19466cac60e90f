"""What a proxied request costs: Stillroom beside nginx and LiteLLM's proxy, on this machine, in one table.

    python -m tests.bench.proxy [--seconds 5] [--repeats 3] [--only NAME] [--without NAME] [--json FILE]

Owns the run: repeats interleaved over the rows, progress to stderr, the table to stdout. A row that fails is left
out and makes the exit code 1.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench.measure import STEPS, Sample, measure, upstream
from tests.bench.peers import KEPT, Peer, all_peers, missing
from tests.bench.processes import Failed
from tests.bench.table import figures, table

Taken = dict[str, list[dict[str, Sample]]]


def main() -> int:
    """Measure and print; returns the exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # A `kill` cleans up just as Ctrl-C does.
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        print("two cores are needed: one for the proxy, one for load and upstream", file=sys.stderr)
        return 1
    try:
        KEPT.mkdir(exist_ok=True)
        peers = _present(_chosen(arguments))
        os.sched_setaffinity(0, {cores[1]})  # The load inherits it.
        taken, failures = _run(peers, cores, arguments.seconds, arguments.repeats)
    except KeyboardInterrupt:
        return 130
    if "direct" in taken:
        rows = {name: figures(repeats, taken["direct"]) for name, repeats in taken.items()}
        print(table(peers, rows, arguments.repeats, arguments.seconds))
        if arguments.json:
            arguments.json.write_text(json.dumps(_record(rows, taken), indent=2))
    for name, failure in failures.items():
        print(f"FAILED {name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    names = [peer.name for peer in all_peers()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of every step (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="of everything, interleaved (default: 3)")
    parser.add_argument(
        "--only", action="append", choices=names, help="this row, and direct to compare with; may be repeated"
    )
    parser.add_argument("--without", action="append", choices=names[1:], default=[], help="leave a row out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write medians and all samples there, too")
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> list[Peer]:
    only = {"direct", *(arguments.only or [peer.name for peer in all_peers()])}
    return [peer for peer in all_peers() if peer.name in only and peer.name not in arguments.without]


def _present(peers: Sequence[Peer]) -> list[Peer]:
    found = []
    for peer in peers:
        if reason := missing(peer):
            print(f"no row for {peer.name}: {reason}", file=sys.stderr, flush=True)
        else:
            found.append(peer)
    return found


def _run(peers: Sequence[Peer], cores: list[int], seconds: float, repeats: int) -> tuple[Taken, dict[str, Failed]]:
    """All repeats; a peer that fails is not tried again and has no row."""
    taken: Taken = {peer.name: [] for peer in peers}
    failures: dict[str, Failed] = {}
    for repeat in range(1, repeats + 1):
        for peer in peers:
            if peer.name in failures:
                continue
            label = f"repeat {repeat} of {repeats}, {peer.name}: "
            try:
                taken[peer.name].append(_once(peer, cores, seconds, label))
            except Failed as failure:
                failures[peer.name] = failure
                del taken[peer.name]
                print(f"{label}FAILED: {failure}", file=sys.stderr, flush=True)
    return taken, failures


def _once(peer: Peer, cores: list[int], seconds: float, label: str) -> dict[str, Sample]:
    """One peer, on fresh processes and in a fresh folder."""

    def tell(step: str) -> None:
        print(label + step, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=KEPT, prefix="run-") as name, upstream(Path(name), cores[1]) as teacher:
        return measure(peer, Path(name), teacher, cores, seconds, tell)


def _record(rows: Mapping[str, Mapping[str, float]], taken: Taken) -> dict[str, object]:
    samples = {
        name: [{step.name: asdict(each[step.name]) for step in STEPS} for each in repeats]
        for name, repeats in taken.items()
    }
    return {"medians": rows, "samples": samples}


if __name__ == "__main__":
    sys.exit(main())
