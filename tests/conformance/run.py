"""The same calls directly and through Stillroom, by real clients on real upstreams: same passes, same failures.

    python -m tests.conformance.run [--upstream replay|vllm] [--client NAME] [--call NAME] [--json FILE]

Owns the run: who is asked in which order, the table on stdout, progress on stderr. Any difference makes the exit code
1. The first run installs the clients under `.bench/`; the one on vLLM takes about ten minutes on two cores.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.processes import Failed
from tests.conformance.clients import KEPT, Client, all_clients, install
from tests.conformance.compare import Comparison, compare
from tests.conformance.upstreams import Captured, Upstream, replay_teacher, stillroom, vllm

_UPSTREAMS: dict[str, Upstream] = {"replay": replay_teacher, "vllm": vllm}
_COLUMNS = "| client | calls | same passes | same failures | same skips | differences | excluded in |"
_AGAIN = 3  # further direct runs of a call that differs: is it the upstream that does?
Compared = Mapping[str, Comparison]


def main() -> int:
    """Run and print; returns the exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # A `kill` cleans up just as Ctrl-C does.
    clients = [client for client in all_clients() if not arguments.client or client.name in arguments.client]
    code, record = 0, {}
    try:
        KEPT.mkdir(parents=True, exist_ok=True)
        install()
        for name in arguments.upstream or _UPSTREAMS:
            found, captured = _on(_UPSTREAMS[name], clients, arguments.call)
            print(_table(name, found, captured), flush=True)
            record[name] = {client.name: _recorded(compared) for client, compared in found}
            code |= any(one.differences for _, compared in found for one in compared.values())
    except KeyboardInterrupt:
        return 130
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False))
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", action="append", choices=_UPSTREAMS, help="this one only; may be repeated")
    parser.add_argument("--client", action="append", choices=[client.name for client in all_clients()])
    parser.add_argument("--call", action="append", metavar="NAME", help="this call or test only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write outcomes, differences and exclusions there")
    return parser.parse_args()


def _on(
    upstream: Upstream, clients: Sequence[Client], names: Collection[str] | None
) -> tuple[list[tuple[Client, Compared]], Captured]:
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="run-") as name:
        folder = Path(name)
        with upstream(folder) as straight, stillroom(folder, straight) as (through, captured):
            found = [(client, _compared(client, straight, through, names)) for client in clients]
    return found, captured


def _compared(client: Client, straight: str, through: str, names: Collection[str] | None) -> Compared:
    """Directly, through the proxy, directly again; what differs then, directly some more times."""

    def asked(url: str, which: Collection[str] | None) -> Mapping[str, Any]:
        print(f"{client.name}: {url}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            return client.run(url, Path(folder), which)

    first, proxied, second = asked(straight, names), asked(through, names), asked(straight, names)
    runs = {name: [first[name], second[name]] for name in first}
    found = {name: compare(runs[name], proxied[name]) for name in first}
    differing = [name for name, one in found.items() if one.differences]
    for _ in range(_AGAIN if differing else 0):
        for name, result in asked(straight, differing).items():
            runs[name].append(result)
    found |= {name: compare(runs[name], proxied[name]) for name in differing}
    print(f"{client.name}: {sum(bool(one.differences) for one in found.values())} differ", file=sys.stderr, flush=True)
    return found


def _table(upstream: str, found: Sequence[tuple[Client, Compared]], captured: Captured) -> str:
    lines = [f"## {upstream}", "", _COLUMNS, "|---" + "|---:" * 6 + "|"]
    for client, compared in found:
        counts = Counter("differs" if one.differences else one.outcome for one in compared.values())
        excluded = sum(bool(one.excluded) for one in compared.values())
        cells = (len(compared), counts["passed"], counts["failed"], counts["skipped"], counts["differs"], excluded)
        lines.append(f"| {client.title} | {' | '.join(str(cell) for cell in cells)} |")
    lines += ["", f"Through Stillroom: {captured.requests} requests, each captured once.", ""]
    for client, compared in found:
        for name, one in compared.items():
            lines += [f"* {client.name}, {name}, {path}: {_sides(*sides)}" for path, sides in one.differences.items()]
    return "\n".join(lines)


def _sides(direct: Any, through: Any) -> str:
    return f"directly {str(direct)[:300]!r}, through Stillroom {str(through)[:300]!r}"


def _recorded(compared: Compared) -> dict[str, Any]:
    return {
        name: {"outcome": one.outcome, "differences": one.differences, "excluded": sorted(one.excluded)}
        for name, one in compared.items()
    }


if __name__ == "__main__":
    sys.exit(main())
