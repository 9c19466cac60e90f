"""Owns the counters of the identity `requests = captured + opted_out + dropped(reason)`.

Must not know where they are scraped. With PROMETHEUS_MULTIPROC_DIR set before import, all workers add up.
"""

from prometheus_client import CollectorRegistry, Counter


class Counters:
    """The proxy's counters, in a registry of their own so that two apps in one process do not collide."""

    def __init__(self) -> None:
        """Register the counters."""
        self.registry = CollectorRegistry()
        self.requests = Counter("stillroom_requests", "Requests accepted under /v1", registry=self.registry)
        self.refused = Counter("stillroom_refused", "Requests refused before that", ["reason"], registry=self.registry)
        self.captured = Counter("stillroom_captured", "Exchanges written to the spool", registry=self.registry)
        self.opted_out = Counter(
            "stillroom_opted_out", "Exchanges the client asked not to keep", registry=self.registry
        )
        self.dropped = Counter("stillroom_dropped", "Exchanges not kept", ["reason"], registry=self.registry)
