import json
import threading
from pathlib import Path

import pytest

from distiller.dashboard.forecasts import Forecasts
from proxy.errors import Unavailable
from tests.logs import migrated
from tests.router.conftest import TASK, insert


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "stillroom.toml"
    file.write_text(f"home = {json.dumps(str(tmp_path / 'home'))}")
    return file


def test_the_command_is_run_and_what_it_said_is_kept(config: Path) -> None:
    log = migrated(config.parent / "home")
    insert(log, ["one", "two"])
    log.close()
    forecasts = Forecasts(config)
    assert forecasts.known(TASK) is None
    made = forecasts.make(TASK)
    assert made.said["task"] == TASK
    assert made.said["conclusion"]["word"] == "needs more exchanges"
    assert forecasts.known(TASK) is made


def test_what_the_command_refuses_is_told(config: Path) -> None:
    with pytest.raises(Unavailable, match="no forecast: there is no log under"):
        Forecasts(config).make(TASK)


def test_a_task_is_never_taken_for_an_option(config: Path) -> None:
    migrated(config.parent / "home").close()
    with pytest.raises(Unavailable, match="'--help'"):
        Forecasts(config).make("--help")


def test_one_runs_at_a_time(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forecasts, begun, go_on = Forecasts(config), threading.Event(), threading.Event()

    def slow(self: Forecasts, task: str) -> dict[str, str]:
        begun.set()
        assert go_on.wait(60)
        return {"task": task}

    monkeypatch.setattr(Forecasts, "_said", slow)
    first = threading.Thread(target=forecasts.make, args=["a"])
    first.start()
    assert begun.wait(60)
    with pytest.raises(Unavailable, match="another forecast is being made"):
        forecasts.make("b")
    go_on.set()
    first.join()
    assert forecasts.make("b").said == {"task": "b"}
