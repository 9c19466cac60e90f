from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.check_log import check_log
from distiller.finding import FIX, OK, WARN, Finding
from distiller.settings import Settings
from proxy.log import Log, open_log
from proxy.migrations import MIGRATIONS
from proxy.settings import LogSettings
from router.settings import RivalSettings, RouterSettings, TaskSettings
from tests.logs import migrated
from tests.router.conftest import TASK, add_rows, insert


def found(settings: Settings) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_log(settings)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def test_without_a_log_there_is_nothing_wrong(settings: Settings) -> None:
    assert {finding.level for finding in check_log(settings)} == {OK}
    assert not (settings.folder / "log").exists()


def test_a_log_in_order(settings: Settings, log: Log) -> None:
    insert(log, ["a"])
    log.close()
    assert {finding.level for finding in check_log(settings)} == {OK}
    assert found(settings)["log"].detail == f"version {len(MIGRATIONS)} of {len(MIGRATIONS)}"


def test_a_log_that_was_never_migrated_is_no_fault(settings: Settings) -> None:
    open_log(LogSettings(), settings.folder).close()
    assert [(one.what, one.level) for one in check_log(settings)] == [("log", OK)]
    assert "brings it up to date" in found(settings)["log"].detail


def test_a_damaged_log_is_one_finding(settings: Settings) -> None:
    catalog = settings.folder / "log" / "catalog.sqlite"
    catalog.parent.mkdir(parents=True)
    catalog.write_text("this is no database")
    assert [(one.what, one.level) for one in check_log(settings)] == [("log", FIX)]


def test_what_has_no_price_is_named_and_cannot_write_to_the_terminal(settings: Settings, log: Log) -> None:
    spent = {"id": "1", "ts": ago(1), "task": TASK, "kind": "teacher", "model": "mine\x1b[2J", "usd": None}
    add_rows(log, "spend", [spent, {**spent, "id": "2"}, {**spent, "id": "3", "ts": ago(8), "model": "old"}])
    log.close()
    seen = found(settings)["unpriced"]
    assert (seen.level, "mine?[2J (2)" in seen.detail, "old" in seen.detail) == (WARN, True, False)


def test_a_clock_that_went_back_is_seen(settings: Settings, log: Log) -> None:
    insert(log, ["a"], ts=ago(-1))
    log.close()
    assert found(settings)["clock"].level == FIX


@pytest.mark.parametrize(
    ("keep", "free", "level"), [(0, 10**15, OK), (0, 10**6, WARN), (3, 10**15, OK), (3000, 10**6, WARN)]
)
def test_retention_is_held_against_what_a_day_weighs(
    settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch, keep: int, free: int, level: str
) -> None:
    insert(log, ["a"], ts=ago(2))
    log.close()
    (settings.folder / "log" / "data").mkdir(exist_ok=True)
    (settings.folder / "log" / "data" / "x.parquet").write_bytes(b"x" * 200_000)
    room = (free + (settings.spool.min_free_mb << 20),) * 3
    monkeypatch.setattr("distiller.check_log.shutil.disk_usage", lambda _: type("Usage", (), {"free": room[0]}))
    seen = found(replace(settings, log=LogSettings(keep_days=keep)))["retention"]
    assert (seen.level, seen.detail.startswith("0.1 MB a day")) == (level, True)


def test_a_task_that_was_mistyped_is_told(settings: Settings, log: Log) -> None:
    insert(log, ["a"])
    log.close()
    rival = RivalSettings(tasks=(TASK, "tirage"), model="m", url="https://x/v1")
    router = RouterSettings(tasks={TASK: TaskSettings(), "traige": TaskSettings()}, rivals={"r": rival})
    seen = [one.detail for one in check_log(replace(settings, router=router)) if one.what == "tasks"]
    assert [detail.split()[0] for detail in seen] == ["router.tasks.traige", "router.rivals.r.tasks"]
