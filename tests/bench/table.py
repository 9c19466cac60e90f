"""Owns the table: medians over the repeats of one run, in Markdown. Must not know how they were taken."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from tests.bench.measure import ALONE, FIRST, LARGE, PLAIN, STREAMS, Sample, Step
from tests.bench.peers import Peer

Repeats = Sequence[Mapping[str, Sample]]  # a peer's samples by the step's name, one mapping a repeat

_HEAD = (
    "proxy", "CPU us / request", "x nginx", "CPU us / 30 kB request", "requests/s",
    "added ms p50 / p99, 1 connection", "added TTFT ms, 1 stream", "CPU us / chunk",
)  # fmt: skip
_NOTES = """
Medians of {repeats} interleaved repeats of {seconds:g} s a step in one run; compare only within it.
Plain HTTP on loopback.
CPU: utime + stime of the proxy's whole process tree{controller}.
1 kB requests and answers, 32 connections. The proxy has one core, load and upstream another{both}.
requests/s: where it comes near to direct's, the load is the limit, not the proxy.
added: against direct in the same repeat. TTFT: time to the first byte of a streamed body.
chunk: 16 streams of 60 chunks 5 ms apart; a request's own cost is in it, spread over its chunks.
Every answer was checked (status 200, whole){captured}."""


def figures(repeats: Repeats, direct: Repeats) -> dict[str, float]:
    """A row's medians; CPU is left out of direct's. Microseconds and milliseconds as the names say."""

    def added(step: Step, value: Callable[[Sample], float]) -> float:
        return median(value(a[step.name]) - value(b[step.name]) for a, b in zip(repeats, direct, strict=True))

    def per_request(step: Step, value: Callable[[Sample], float]) -> float:
        return median(value(each[step.name]) / each[step.name].result.requests for each in repeats)

    return {
        "cpu_us": per_request(PLAIN, lambda sample: sample.cpu_us),
        "controller_us": per_request(PLAIN, lambda sample: sample.controller_us),
        "large_cpu_us": per_request(LARGE, lambda sample: sample.cpu_us),
        "requests_per_second": median(each[PLAIN.name].result.per_second for each in repeats),
        "added_p50_ms": added(ALONE, lambda sample: sample.result.p50),
        "added_p99_ms": added(ALONE, lambda sample: sample.result.p99),
        "added_ttft_ms": added(FIRST, lambda sample: sample.result.first_p50),
        "chunk_cpu_us": per_request(STREAMS, lambda sample: sample.cpu_us) / STREAMS.chunks,
    }


def table(peers: Sequence[Peer], rows: Mapping[str, Mapping[str, float]], repeats: int, seconds: float) -> str:
    """The table and what has to be known to read it; `rows` are `figures` by the peer's name."""
    shown = [peer for peer in peers if peer.name in rows]
    nginx = rows.get("nginx")
    lines = [_line(_HEAD), _line(["---", *["--:"] * (len(_HEAD) - 1)])]
    lines += [_line(_cells(peer, rows[peer.name], nginx)) for peer in shown]
    capturing = [peer for peer in shown if peer.captures]
    aside = "; ".join(f"{peer.title}: {rows[peer.name]['controller_us']:.0f} us" for peer in capturing)
    notes = _NOTES.format(
        repeats=repeats,
        seconds=seconds,
        controller=f", without the controller's,\n  which ingests at the same time (per 1 kB request: {aside})"
        * bool(aside),
        both="; two workers share both cores\n  with the load: compare that row's CPU, not its rate"
        * any(peer.cores > 1 for peer in shown),
        captured=", and every exchange found in the spool exactly once" * bool(capturing),
    )
    return "\n".join([*lines, notes])


def _cells(peer: Peer, row: Mapping[str, float], nginx: Mapping[str, float] | None) -> list[str]:
    rate = f"{row['requests_per_second']:,.0f}"
    if peer.prepare is None:
        return [peer.title, "-", "-", "-", rate, "-", "-", "-"]
    return [
        peer.title,
        _us(row["cpu_us"]),
        f"{row['cpu_us'] / nginx['cpu_us']:.1f}" if nginx else "-",
        _us(row["large_cpu_us"]),
        rate,
        f"{row['added_p50_ms']:.2f} / {row['added_p99_ms']:.2f}",
        f"{row['added_ttft_ms']:.2f}",
        _us(row["chunk_cpu_us"]),
    ]


def _us(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
