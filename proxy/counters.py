"""Owns what a worker counts: the identity `requests = captured + opted_out + dropped(reason)`, and how exchanges went.

Must not know where it is scraped. With PROMETHEUS_MULTIPROC_DIR set before import, all workers add up. The identity's
counters are written at once, so that a kill leaves them right. The rest is tallied in plain numbers, at a tenth of the
price, and written by `flush`: up to a second of it dies with a worker. For the event loop's thread only.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proxy.deciding import TEACHER
from proxy.exchange import Exchange
from proxy.failover import Health
from proxy.feedback import STILLROOM

FLUSH_SECONDS = 1.0
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)  # seconds
OTHER = "other"
# How a fallback's recorded text begins, and the word it is counted under.
FALLBACKS = {
    "candidate unreachable": "unreachable",
    "provider unavailable": "unavailable",
    "candidate timed out": "timeout",
    "candidate too slow": "too_slow",
    "candidate answered": "status",
    "candidate stopped with": "cut_off",
    "candidate's answer is not": "unreadable_answer",
    "unsure": "unsure",
    "answer breaks the format": "format",
    "answer is longer": "too_long",
    "the request holds more": "request",
    "unreadable request": "request",
    "template changed": "template",
    "the router is stopping": "stopping",
}
SERVED_BY = (TEACHER, "student", STILLROOM)
STATUSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx", OTHER)  # by the first digit; none: there was no answer
REFUSED = ("body_too_large", "key", "model", "requests", "tokens", "budget")
DROPPED = ("record", "spool", "disk", "redaction")
LOGPROBS = ("asked", "refused", "stripped", "kept")


class Counters:
    """The proxy's counters, in a registry of their own so that two apps in one process do not collide."""

    def __init__(self) -> None:
        """Register everything; what has a known label begins at zero, so that its first time shows as a rise."""
        self.registry = CollectorRegistry()
        self.requests = self._count("requests", "Requests accepted under /v1")
        self.refused = self._count("refused", "Requests refused before that", "reason")
        self.captured = self._count("captured", "Exchanges written to the spool")
        self.opted_out = self._count("opted_out", "Exchanges the client asked not to keep")
        self.dropped = self._count("dropped", "Exchanges not kept", "reason")
        self.logprobs = self._count("logprobs", "Exchanges in whose name log-probabilities were asked for", "outcome")
        for counter, words in ((self.refused, REFUSED), (self.dropped, DROPPED), (self.logprobs, LOGPROBS)):
            for word in words:
                counter.labels(word)
        ended = self._count("exchanges", "Exchanges that are over", "served_by", "status")
        self._ended = [[ended.labels(kind, status) for status in STATUSES] for kind in SERVED_BY]
        partial = self._count("partial", "Exchanges that broke off", "served_by")
        self._partial = [partial.labels(kind) for kind in SERVED_BY]
        fallbacks = self._count("fallbacks", "Candidates that failed, so that the teacher answered", "reason")
        self._fallbacks = {word: fallbacks.labels(word) for word in {*FALLBACKS.values(), OTHER}}
        self._asked = self._count("request_bytes", "Bodies of requests")
        self._answered = self._count("response_bytes", "Bodies of answers")
        self._latency = self._time("latency_seconds", "From the request's first byte to the end of the exchange")
        self._first_byte = self._time("first_byte_seconds", "From the request's first byte to the answer's")
        self._running = Gauge(
            "stillroom_in_progress", "Exchanges under way", registry=self.registry, multiprocess_mode="livesum"
        )
        self._open = Gauge(
            "stillroom_deployment_open", "Workers that leave a deployment alone", ["deployment"],
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._failures = self._count("deployment_failures", "Requests a deployment failed at", "deployment")
        self._failed: dict[str, int] = {}
        self._now = 0
        self._tally: Tally[Counter] = Tally()

    def began(self) -> None:
        """An exchange is accepted; `finished` must follow."""
        self.requests.inc()
        self._now += 1

    def finished(self, exchange: Exchange) -> None:
        """An exchange is over, however it ended; its fields say how."""
        self._now -= 1
        served_by = exchange.served_by
        by = 0 if served_by == TEACHER else 2 if served_by == STILLROOM else 1
        tally = self._tally
        tally[self._ended[by][min(exchange.status // 100, 6)]] += 1
        tally[self._asked] += len(exchange.request)
        tally[self._answered] += len(exchange.response)
        if exchange.partial:
            tally[self._partial[by]] += 1
        if exchange.fallback is not None:
            tally[self._fallbacks[fallback_word(exchange.fallback)]] += 1
        self._latency[by].note(exchange.latency_ms / 1000)
        if exchange.first_byte_ms is not None:
            self._first_byte[by].note(exchange.first_byte_ms / 1000)

    def deployments(self, health: Iterable[Health]) -> None:
        """How the teacher's deployments are now, where there are several."""
        for each in health:
            self._open.labels(each.deployment).set(each.state != "closed")
            self._failures.labels(each.deployment).inc(each.failures - self._failed.get(each.deployment, 0))
            self._failed[each.deployment] = each.failures

    def flush(self) -> None:
        """Write what was tallied."""
        self._running.set(self._now)
        for counter, count in self._tally.items():
            counter.inc(count)
        self._tally.clear()
        for times in (*self._latency, *self._first_byte):
            times.flush()

    def _count(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"stillroom_{name}", text, labels, registry=self.registry)

    def _time(self, name: str, text: str) -> list["_Times"]:
        made = _Times(f"stillroom_{name}", text, ["served_by"], registry=self.registry, buckets=BUCKETS)
        return [made.labels(kind) for kind in SERVED_BY]


class _Times(Histogram):
    """A histogram that is written many observations at a time."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._noted, self._total = [0] * (len(BUCKETS) + 1), 0.0

    def note(self, seconds: float) -> None:
        self._noted[bisect_left(BUCKETS, seconds)] += 1
        self._total += seconds

    def flush(self) -> None:
        for bucket, count in zip(self._buckets, self._noted, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(self._total)
        self._noted, self._total = [0] * len(self._noted), 0.0


def fallback_word(text: str) -> str:
    """The bounded word for a recorded fallback."""
    return next((word for start, word in FALLBACKS.items() if text.startswith(start)), OTHER)
