import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from proxy.counters import FALLBACKS, OTHER, Counters, fallback_word
from proxy.exchange import Exchange
from proxy.failover import Health

DONE = Exchange(
    id="01J", ts=0.0, method="POST", path="/v1/chat/completions", request=b"asked", response=b"answered", status=200,
    first_byte_ms=40.0, latency_ms=300.0,
)  # fmt: skip
WORKER = """
from proxy.counters import Counters
counters = Counters()
counters.requests.inc(3)
counters.captured.inc()
counters.opted_out.inc()
counters.dropped.labels("spool").inc()
"""
# Accepts three, answers one, and tallies; then waits to be killed.
KILLED = """
import signal, sys
from proxy.counters import Counters
from tests.proxy.test_counters import DONE
counters = Counters()
for _ in range(3):
    counters.began()
counters.captured.inc()
counters.finished(DONE)
if sys.argv[1] == "flushed":
    counters.flush()
print("ready", flush=True)
signal.pause()
"""


def merged(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return registry


def killed(folder: Path, how: str) -> int:
    """A worker that was killed in the middle; returns its process id."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with subprocess.Popen([sys.executable, "-c", KILLED, how], env=environment, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        worker.send_signal(signal.SIGKILL)
    return worker.pid


def test_two_in_one_process_do_not_collide() -> None:
    one, other = Counters(), Counters()
    one.requests.inc()
    assert one.registry.get_sample_value("stillroom_requests_total") == 1
    assert other.registry.get_sample_value("stillroom_requests_total") == 0


def test_all_workers_add_up(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    registry = merged(tmp_path)
    names = ("requests", "captured", "opted_out")
    assert [registry.get_sample_value(f"stillroom_{name}_total") for name in names] == [6, 2, 2]
    assert registry.get_sample_value("stillroom_dropped_total", {"reason": "spool"}) == 2


def test_the_identity_survives_a_kill_and_the_rest_up_to_the_last_flush(tmp_path: Path) -> None:
    for how in ("flushed", "not flushed"):
        killed(tmp_path, how)
    value = merged(tmp_path).get_sample_value
    assert (value("stillroom_requests_total"), value("stillroom_captured_total")) == (6, 2)
    assert value("stillroom_exchanges_total", {"served_by": "teacher", "status": "2xx"}) == 1
    assert value("stillroom_latency_seconds_count", {"served_by": "teacher"}) == 1


def test_what_a_dead_worker_had_under_way_is_counted_until_it_is_buried(tmp_path: Path) -> None:
    pid = killed(tmp_path, "flushed")
    assert merged(tmp_path).get_sample_value("stillroom_in_progress") == 2
    mark_process_dead(pid, str(tmp_path))  # type: ignore[no-untyped-call]
    assert merged(tmp_path).get_sample_value("stillroom_in_progress") is None
    assert merged(tmp_path).get_sample_value("stillroom_requests_total") == 3


def test_an_exchange_is_counted_by_who_answered_and_how() -> None:
    counters = Counters()
    value = counters.registry.get_sample_value
    student = replace(DONE, served_by="triage-1f3a9c2e-ab12", status=200, latency_ms=5.0, first_byte_ms=5.0)
    broken = replace(DONE, status=0, partial=True, first_byte_ms=None, response=b"", latency_ms=61_000.0)
    for exchange in (DONE, student, replace(DONE, status=429), replace(DONE, status=999), broken):
        counters.began()
        counters.finished(exchange)
    counters.began()
    counters.flush()
    counters.flush()
    statuses = {"2xx": 1, "4xx": 1, "other": 1, "none": 1, "5xx": 0}
    for status, count in statuses.items():
        assert value("stillroom_exchanges_total", {"served_by": "teacher", "status": status}) == count
    assert value("stillroom_exchanges_total", {"served_by": "student", "status": "2xx"}) == 1
    assert value("stillroom_partial_total", {"served_by": "teacher"}) == 1
    assert value("stillroom_request_bytes_total") == 25
    assert value("stillroom_response_bytes_total") == 32
    assert value("stillroom_in_progress") == 1
    assert value("stillroom_first_byte_seconds_count", {"served_by": "teacher"}) == 3
    assert value("stillroom_latency_seconds_bucket", {"served_by": "teacher", "le": "60.0"}) == 3
    assert value("stillroom_latency_seconds_bucket", {"served_by": "teacher", "le": "+Inf"}) == 4
    assert value("stillroom_latency_seconds_sum", {"served_by": "teacher"}) == pytest.approx(61.9)
    assert value("stillroom_latency_seconds_bucket", {"served_by": "student", "le": "0.01"}) == 1


@given(st.lists(st.floats(0, 100_000), max_size=30), st.integers(1, 5))
def test_many_at_once_are_as_one_by_one(latencies: list[float], every: int) -> None:
    tallied, plain = Counters(), Counters()
    for number, latency in enumerate(latencies):
        tallied.finished(replace(DONE, latency_ms=latency))
        plain._latency[0].observe(latency / 1000)
        if number % every == 0:
            tallied.flush()
    tallied.flush()
    tallied.flush()
    assert seen(tallied) == pytest.approx(seen(plain))


def seen(counters: Counters) -> dict[str, float]:
    return {
        sample.name + sample.labels.get("le", ""): sample.value
        for metric in counters.registry.collect()
        for sample in metric.samples
        if metric.name == "stillroom_latency_seconds" and sample.labels["served_by"] == "teacher"
        and not sample.name.endswith("_created")
    }  # fmt: skip


@pytest.mark.parametrize(("text", "word"), [
    ("candidate unreachable: HTTP 502", "unreachable"), ("unsure", "unsure"), ("candidate answered 404", "status"),
    ("a word of somebody's own", OTHER), ("", OTHER),
])  # fmt: skip
def test_fallbacks_are_counted_by_a_bounded_word(text: str, word: str) -> None:
    counters = Counters()
    counters.finished(replace(DONE, fallback=text))
    counters.flush()
    assert counters.registry.get_sample_value("stillroom_fallbacks_total", {"reason": word}) == 1
    assert fallback_word(text) == word


def test_what_has_a_known_reason_begins_at_zero() -> None:
    value = Counters().registry.get_sample_value
    for name, reason in (("refused", "key"), ("dropped", "spool"), ("fallbacks", "timeout"), ("fallbacks", OTHER)):
        assert value(f"stillroom_{name}_total", {"reason": reason}) == 0
    assert set(FALLBACKS.values()).isdisjoint({OTHER})


def test_deployments_show_who_is_left_alone_and_how_often_each_failed() -> None:
    counters = Counters()
    for failures in (3, 5):
        counters.deployments([Health("a.example", "open", failures), Health("b.example", "closed", 0)])
    value = counters.registry.get_sample_value
    seen = [
        (value("stillroom_deployment_open", label), value("stillroom_deployment_failures_total", label))
        for label in ({"deployment": "a.example"}, {"deployment": "b.example"})
    ]
    assert seen == [(1, 5), (0, 0)]
