"""Owns what became of every request since the start, by the workers' counters. Must not know what a request was."""

from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

_NAMES = ("requests", "captured", "opted_out", "dropped")


@dataclass(frozen=True, slots=True)
class Capture:
    """requests = captured + opted_out + dropped, but for those under way; `dropped` is 0 where all is well."""

    requests: int
    captured: int
    opted_out: int
    dropped: int
    reasons: tuple[str, ...]


def capture(metrics: Path) -> Capture | None:
    """As all workers count, those that have ended too; None where none was started here."""
    if not metrics.is_dir():
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(metrics))  # type: ignore[no-untyped-call]
    counted, reasons = dict.fromkeys(_NAMES, 0), []
    for family in registry.collect():
        name = family.name.removeprefix("stillroom_")
        for sample in family.samples if name in counted else ():
            counted[name] += int(sample.value)
            if name == "dropped" and sample.value:
                reasons.append(sample.labels["reason"])
    return Capture(**counted, reasons=tuple(sorted(reasons)))
