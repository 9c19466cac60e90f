import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.ids import ulid
from proxy.spool import SpoolWriter
from proxy.vitals import DISK_BYTES, Observed, Vitals, Waiting, waiting


def vitals(home: Path, **observed: Any) -> Vitals:
    return Vitals(home, home / "spool", lambda: Observed(**observed))


def well(**other: Any) -> dict[str, Any]:
    return {"last_round": time.time(), "log_answered": time.time(), "engine": "up"} | other


@pytest.fixture(autouse=True)
def enough_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, DISK_BYTES)


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("proxy.vitals.shutil.disk_usage", lambda _: SimpleNamespace(free=size))


def test_before_the_first_round_it_is_starting(tmp_path: Path) -> None:
    assert vitals(tmp_path).report()["status"] == "starting"
    assert vitals(tmp_path, **well()).report()["status"] == "ready"


@pytest.mark.parametrize(
    ("observed", "wrong"),
    [
        ({}, []),
        ({"engine": None}, []),
        ({"engine": "starting"}, []),
        ({"engine": "down"}, ["engine"]),
        ({"log_answered": time.time() - 3600}, ["log"]),
        ({"last_round": time.time() - 3600, "engine": "down"}, ["round", "engine"]),
    ],
)
def test_what_is_degraded_is_named(tmp_path: Path, observed: dict[str, Any], wrong: list[str]) -> None:
    report = vitals(tmp_path, **well(**observed)).report()
    assert report["degraded"] == wrong
    assert report["status"] == ("degraded" if wrong else "ready")


def test_a_full_disk_is_degraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, DISK_BYTES - 1)
    report = vitals(tmp_path, **well()).report()
    assert (report["degraded"], report["disk_free_bytes"]) == (["disk"], DISK_BYTES - 1)


def test_the_spool_is_what_the_log_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    assert waiting(spool) == Waiting(0, 0, None)
    began = time.time()
    writer = SpoolWriter(spool, 1 << 20, 60)
    writer.append(b"x" * 10)
    writer.rotate()
    writer.append(b"y" * 5)
    (spool / "ingested").mkdir()
    (spool / f"{ulid()}.poison").write_bytes(b"unreadable")
    (spool / f"{ulid()}.open").touch()
    (spool / "of somebody else.ndjson").write_bytes(b"what")
    found = waiting(spool)
    assert (found.segments, found.size) == (2, 15)
    assert found.since is not None
    assert began - 0.001 <= found.since <= time.time()
    later = time.time() + 1000
    monkeypatch.setattr("proxy.vitals.time.time", lambda: later)
    report = vitals(tmp_path, **well(log_answered=later, last_round=later)).report()
    assert report["degraded"] == ["spool"]
    assert 990 < report["spool_oldest_seconds"] < 1001


def test_the_same_as_metrics(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    stages = {"shadow": 2, "live": 1}
    registry.register(vitals(tmp_path, ingested=7, last_round=5.5, log_answered=6.5, stages=stages, engine="down"))
    value = registry.get_sample_value
    assert value("stillroom_ingested_total") == 7
    assert value("stillroom_engine_up") == 0
    assert value("stillroom_last_round_timestamp_seconds") == 5.5
    assert value("stillroom_log_answered_timestamp_seconds") == 6.5
    assert value("stillroom_disk_free_bytes") == DISK_BYTES
    assert value("stillroom_spool_segments") == value("stillroom_spool_bytes") == 0
    assert value("stillroom_candidates", {"stage": "shadow"}) == 2
    assert value("stillroom_spool_oldest_seconds") is None


def test_what_is_not_known_has_no_sample(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(vitals(tmp_path))
    assert registry.get_sample_value("stillroom_engine_up") is None
    assert registry.get_sample_value("stillroom_last_round_timestamp_seconds") is None
    assert registry.get_sample_value("stillroom_ingested_total") == 0
