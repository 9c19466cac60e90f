import json
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from distiller.check_running import check_running
from distiller.finding import FIX, OK, WARN, Finding
from distiller.settings import Settings
from proxy.ids import ulid
from router.controller import only_one


def found(settings: Settings) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_running(settings)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


@pytest.fixture
def controller(settings: Settings) -> Iterator[None]:
    """Somebody who holds its lock."""
    with only_one(settings.folder):
        yield


def segment(settings: Settings, seconds_ago: float) -> None:
    settings.spool_folder.mkdir(exist_ok=True)
    with patch("proxy.ids.time.time_ns", return_value=int((time.time() - seconds_ago) * 1e9)):
        name = ulid()
    (settings.spool_folder / f"{name}.ndjson").write_text("{}\n")


def test_a_home_where_nothing_runs_is_in_order(settings: Settings) -> None:
    segment(settings, 3600)
    assert {finding.level for finding in check_running(settings)} == {OK}
    assert "`stillroom serve` takes them in" in found(settings)["spool"].detail


@pytest.mark.usefixtures("controller")
def test_what_waits_too_long_beside_a_controller_is_a_fault(settings: Settings) -> None:
    assert found(settings)["spool"] == Finding("spool", OK, "nothing waits for the log")
    segment(settings, 1)
    assert found(settings)["spool"].level == OK
    segment(settings, 3600)
    assert found(settings)["spool"].level == FIX


def test_quarantine_is_told(settings: Settings) -> None:
    folder = settings.spool_folder / "quarantine"
    folder.mkdir(parents=True)
    (folder / "x.ndjson").write_text("{}\n{}\n")
    seen = found(settings)["quarantine"]
    assert (seen.level, seen.detail.split()[0]) == (WARN, "2")


@pytest.mark.usefixtures("controller")
def test_an_old_backup_is_told(settings: Settings) -> None:
    folder = settings.folder / "log" / "backups"
    folder.mkdir(parents=True)
    (folder.parent / "catalog.sqlite").touch()
    assert found(settings)["backups"].level == WARN
    (folder / "20260101T000000-000000001.sqlite").touch()
    assert found(settings)["backups"].level == WARN


@pytest.mark.usefixtures("controller")
def test_engines_and_what_they_do_not_serve(settings: Settings) -> None:
    settings.engine_state.parent.mkdir(parents=True)
    state = {"state": "down", "reason": "exited with code 1", "ready": [], "failed": {}, "url": ""}
    settings.engine_state.write_text(json.dumps(state))
    settings.small_state.write_text(json.dumps({**state, "state": "up", "ready": ["a"], "failed": {"b": "damaged"}}))
    seen = [finding for finding in check_running(settings) if "engine" in finding.what]
    assert [(one.what, one.level) for one in seen] == [("engine", FIX), ("small engine", OK), ("small engine", FIX)]
    assert seen[2].detail == "b is not served: damaged"
