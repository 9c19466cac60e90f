import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.counters import Counters

WORKER = """
from proxy.counters import Counters
counters = Counters()
counters.requests.inc(3)
counters.captured.inc()
counters.opted_out.inc()
counters.dropped.labels("spool").inc()
"""


def test_two_in_one_process_do_not_collide() -> None:
    one, other = Counters(), Counters()
    one.requests.inc()
    assert one.registry.get_sample_value("stillroom_requests_total") == 1
    assert other.registry.get_sample_value("stillroom_requests_total") == 0


def test_all_workers_add_up(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    names = ("requests", "captured", "opted_out")
    assert [registry.get_sample_value(f"stillroom_{name}_total") for name in names] == [6, 2, 2]
    assert registry.get_sample_value("stillroom_dropped_total", {"reason": "spool"}) == 2
