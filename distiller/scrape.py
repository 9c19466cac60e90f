"""Owns reading the admin port's `/metrics` back: the sums that a live view needs, and rates between two looks.

Must not know who shows them. A port that does not answer is said, not raised: the log tells the rest.
"""

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

SECONDS = 2.0
_LATENCY = "stillroom_latency_seconds"
_MOST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look: when (monotonic seconds), counters by name and `name{label}`, buckets of latency by upper bound."""

    at: float
    sums: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[float, float] = field(default_factory=dict)

    def of(self, name: str) -> int:
        """A counter or gauge, over all its labels; 0 where it was not told."""
        return round(self.sums.get(f"stillroom_{name}", 0.0))


@dataclass(frozen=True, slots=True)
class Flow:
    """What passed between two looks: requests and failures a second, latency in ms; None where nothing passed."""

    requests: float
    failures: float
    median_ms: float | None
    slow_ms: float | None


def scrape(url: str, token: str) -> Scrape | str:
    """Ask `url`, the admin port's base; a sentence where it cannot be had."""
    request = urllib.request.Request(f"{url}/metrics", headers={"authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # It is on this machine, or meant as it is.
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
        return parsed(text, time.monotonic())
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answers {error.code}" + (
                ": the admin token is missing or wrong" if error.code == 401 else ""
            )
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {getattr(error, 'reason', None) or error}"


def parsed(text: str, at: float) -> Scrape:
    """A page of metrics; ValueError for what is none."""
    sums: defaultdict[str, float] = defaultdict(float)
    buckets: defaultdict[float, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{_LATENCY}_bucket":
                buckets[float(sample.labels["le"])] += sample.value
            elif sample.name.startswith("stillroom_") and not sample.name.endswith("_bucket"):
                for name in _names(family, sample.labels):
                    sums[name] += sample.value
    return Scrape(at, dict(sums), dict(buckets))


def _names(family: Metric, labels: Mapping[str, str]) -> Sequence[str]:
    """Under which names a sample is added up: all labels together, and each label's values apart."""
    return [family.name, *(f"{family.name}{{{label}={value}}}" for label, value in labels.items())]


def flow(before: Scrape, after: Scrape) -> Flow | None:
    """What passed between them; None where there was no time, or the counters began anew."""
    seconds = after.at - before.at
    passed = {name: value - before.sums.get(name, 0.0) for name, value in after.sums.items()}
    ended = passed.get("stillroom_exchanges", 0.0)
    if seconds <= 0 or ended < 0 or passed.get("stillroom_requests", 0.0) < 0:
        return None
    failed = sum(passed.get(f"stillroom_exchanges{{status={word}}}", 0.0) for word in ("none", "5xx", "other"))
    counts = {bound: count - before.buckets.get(bound, 0.0) for bound, count in after.buckets.items()}
    return Flow(
        requests=passed.get("stillroom_requests", 0.0) / seconds,
        failures=failed / seconds,
        median_ms=quantile(counts, 0.5),
        slow_ms=quantile(counts, 0.95),
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """In ms, interpolated within its bucket as Prometheus does; None for an empty histogram of cumulative counts."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    wanted, low, below = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return 1000 * low
            return 1000 * (low + (bound - low) * (wanted - below) / (buckets[bound] - below))
        low, below = bound, buckets[bound]
    return 1000 * low
