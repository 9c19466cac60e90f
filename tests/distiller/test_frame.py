import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller import scrape
from distiller.course import telling
from distiller.frame import Watcher
from distiller.runs import End, Wish, record
from distiller.settings import Settings
from proxy.admin import create_admin
from proxy.log import open_log
from proxy.settings import AdminSettings, LogSettings
from proxy.vitals import Observed, Vitals
from router.controller import only_one
from router.freezes import freeze
from tests.logs import migrated
from tests.router.conftest import TASK, insert
from tests.servers import free_port, serving


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path), admin=AdminSettings(port=free_port()))


@pytest.fixture
def watcher(settings: Settings) -> Iterator[Watcher]:
    watcher = Watcher(settings)
    yield watcher
    watcher.close()


def test_a_home_without_anything_is_said_to_be_empty(watcher: Watcher) -> None:
    seen = watcher.look(datetime.now(UTC))
    assert "there is no log" in seen.no_log
    assert "does not answer" in seen.no_admin
    assert (seen.running, seen.logged.tasks, seen.engines, seen.spool.segments, seen.flow) == (False, (), [], 0, None)
    assert isinstance(watcher.detail(TASK), str)


def test_what_is_written_later_is_seen_by_the_next_look(watcher: Watcher, settings: Settings) -> None:
    watcher.look(datetime.now(UTC))
    log = migrated(settings.folder)
    insert(log, ["a"])
    (one,) = watcher.look(datetime.now(UTC)).logged.tasks
    insert(log, ["b"])
    freeze(log, TASK, "audit week")
    seen = watcher.look(datetime.now(UTC))
    assert (one.exchanges, seen.logged.tasks[0].exchanges) == (1, 2)
    assert (seen.no_log, seen.logged.frozen) == ("", {TASK: "audit week"})
    assert seen.logged.money is not None
    log.close()


def test_what_failed_and_what_is_learned_is_seen(watcher: Watcher, settings: Settings) -> None:
    log, at = migrated(settings.folder), datetime.now(UTC)
    for cause, outcome in (("1", "failed"), ("2", "ok"), ("3", "failed")):
        task = "mended" if cause != "3" else TASK
        record(log, Wish(f"distill:{task}", "distill", cause, "cron", at, task), End(outcome, "no room"), at)
    log.close()
    with telling(settings.courses, TASK, lambda *_: None) as course:
        course("linear head", 1, 4)
        seen = watcher.look(datetime.now(UTC))
    assert [(run.task, run.detail) for run in seen.logged.failed] == [(TASK, "no room")]
    assert [(one.task, one.points[-1].done) for one in seen.learning] == [(TASK, 1)]
    assert watcher.look(datetime.now(UTC)).learning == []


def test_a_log_of_before_is_said(watcher: Watcher, settings: Settings) -> None:
    open_log(LogSettings(), settings.folder).close()
    assert "brings it up to date" in watcher.look(datetime.now(UTC)).no_log


def test_a_running_system_is_seen_through_its_files_and_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "SECONDS", 60.0)  # A busy machine is no failure.
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    state = {"state": "up", "reason": None, "ready": ["student-1"], "failed": {}}
    (home / "state" / "engine.json").write_text(json.dumps(state))
    (home / "state" / "small.json").write_text(json.dumps({**state, "state": "down", "reason": "killed", "ready": []}))
    vitals = Vitals(home, home / "spool", lambda: Observed(ingested=5))
    with serving(create_admin(AdminSettings(), home / "metrics", vitals)) as url, only_one(home):
        port = int(url.rpartition(":")[2].removesuffix("/v1"))
        watcher = Watcher(Settings(home=str(home), admin=AdminSettings(port=port)))
        first, second = watcher.look(datetime.now(UTC)), watcher.look(datetime.now(UTC))
        watcher.close()
    assert first.counted is not None
    assert (first.running, first.no_admin, first.counted.of("ingested"), first.flow) == (True, "", 5, None)
    assert second.flow is not None
    assert second.flow.requests == 0
    assert [(one.name, one.state, one.ready) for one in first.engines] == [
        ("vLLM", "up", 1),
        ("small students", "down", 0),
    ]
