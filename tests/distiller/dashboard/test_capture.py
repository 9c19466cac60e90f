import os
import subprocess
import sys
from pathlib import Path

from distiller.dashboard.capture import Capture, capture

# What one worker does; the folder has to be in the environment before prometheus_client is imported.
WORKER = """
from proxy.counters import Counters
counters = Counters()
counters.requests.inc(6)
counters.captured.inc(3)
counters.opted_out.inc(1)
counters.dropped.labels("disk").inc(2)
"""


def test_the_workers_counters_are_added_up_and_what_was_dropped_says_why(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    assert capture(tmp_path) == Capture(12, 6, 2, 4, ("disk",))


def test_without_workers_nothing_is_known(tmp_path: Path) -> None:
    assert capture(tmp_path / "none") is None
    assert capture(tmp_path) == Capture(0, 0, 0, 0, ())
