"""Owns how the controller is: what of it is degraded, and the same as metrics. Must not touch the log.

It is asked from the admin port's thread, at every scrape: what is known of the log, it is told in an `Observed`; the
spool and the disk it looks at itself.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.ids import moment
from proxy.spool import CLOSED, OPEN

LOG_SECONDS = 60.0  # without an answer of the log
ROUND_SECONDS = 300.0  # without a round that succeeded; comparing with a slow candidate takes minutes
SPOOL_SECONDS = 120.0  # that an exchange waits for the log
DISK_BYTES = 1 << 30  # free where everything is kept


@dataclass(frozen=True, slots=True)
class Observed:
    """What the controller last knew; moments in seconds of the epoch, `engine` as its state, None where there is none.

    `ingested` counts exchanges since the controller started.
    """

    ingested: int = 0
    last_round: float | None = None
    log_answered: float | None = None
    stages: Mapping[str, int] | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What of the spool is not in the log yet; `since` is when its oldest exchange was written."""

    segments: int
    size: int
    since: float | None


class Vitals(Collector):
    """Asked at any time, from any thread; `observe` must return at once."""

    def __init__(self, home: Path, spool: Path, observe: Callable[[], Observed]) -> None:
        """Nothing is looked at yet."""
        self._home, self._spool, self._observe = home, spool, observe

    def report(self) -> dict[str, Any]:
        """`status` (starting, ready or degraded), what is `degraded`, and the numbers behind it."""
        now, seen, spooled = time.time(), self._observe(), waiting(self._spool)
        free = shutil.disk_usage(self._home).free
        ages = {
            "log_answered_seconds": _age(now, seen.log_answered),
            "last_round_seconds": _age(now, seen.last_round),
            "spool_oldest_seconds": _age(now, spooled.since),
        }
        degraded = {
            "log": (ages["log_answered_seconds"] or 0) > LOG_SECONDS,
            "round": (ages["last_round_seconds"] or 0) > ROUND_SECONDS,
            "spool": (ages["spool_oldest_seconds"] or 0) > SPOOL_SECONDS,
            "disk": free < DISK_BYTES,
            "engine": seen.engine == "down",
        }
        wrong = [name for name, is_so in degraded.items() if is_so]
        status = "starting" if seen.last_round is None else "degraded" if wrong else "ready"
        numbers = {"spool_segments": spooled.segments, "spool_bytes": spooled.size, "disk_free_bytes": free}
        return {"status": status, "degraded": wrong, **ages, **numbers, "engine": seen.engine}

    def collect(self) -> Iterable[Metric]:
        """The same for Prometheus."""
        seen, spooled = self._observe(), waiting(self._spool)
        yield CounterMetricFamily("stillroom_ingested", "Exchanges that went into the log", seen.ingested)
        yield _gauge("spool_segments", "Segments not in the log yet", spooled.segments)
        yield _gauge("spool_bytes", "Bytes of segments not in the log yet", spooled.size)
        yield _gauge(
            "spool_oldest_seconds", "Age of the oldest exchange not in the log yet", _age(time.time(), spooled.since)
        )
        yield _gauge("disk_free_bytes", "Bytes free under home", shutil.disk_usage(self._home).free)
        yield _gauge("last_round_timestamp_seconds", "When the last round succeeded", seen.last_round)
        yield _gauge("log_answered_timestamp_seconds", "When the log last answered", seen.log_answered)
        yield _gauge("engine_up", "Whether the engine serves", None if seen.engine is None else seen.engine == "up")
        stages = GaugeMetricFamily("stillroom_candidates", "Candidates", labels=["stage"])
        for stage, count in (seen.stages or {}).items():
            stages.add_metric([stage], count)
        yield stages


def waiting(spool: Path) -> Waiting:
    """The segments of a spool folder that are not ingested; empty ones hold no exchange."""
    segments, size, since = 0, 0, None
    with contextlib.suppress(FileNotFoundError), os.scandir(spool) as entries:
        for entry in entries:
            if not entry.name.endswith((OPEN, CLOSED)):
                continue
            with contextlib.suppress(FileNotFoundError, ValueError):  # Ingested just now; or a file that is not ours.
                written, held = moment(entry.name), entry.stat().st_size
                if held:
                    segments, size = segments + 1, size + held
                    since = written if since is None else min(since, written)
    return Waiting(segments, size, since)


def _age(now: float, since: float | None) -> float | None:
    return None if since is None else round(max(now - since, 0.0), 3)


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """Without a sample where the value is not known."""
    family = GaugeMetricFamily(f"stillroom_{name}", text)
    if value is not None:
        family.add_metric([], value)
    return family
