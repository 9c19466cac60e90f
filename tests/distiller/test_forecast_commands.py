import json
from pathlib import Path

import pytest

from stillroom import main
from tests.distiller.test_forecast import fill
from tests.logs import migrated
from tests.router.conftest import TASK, insert


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "stillroom.toml"
    file.write_text('home = "home"\n[distiller]\nbase = "owner/not-here"')
    return file


def test_a_forecast_is_read_by_people_and_by_scripts(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    fill(migrated(config.parent / "home"), 400)
    assert main(["forecast", TASK, "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{TASK}: distillable: even a stand-in")
    assert "expected coverage" in shown
    assert "unpriced" in shown
    assert main(["forecast", TASK, "--config", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["conclusion"]["word"]) == (TASK, "distillable")
    assert told["money"]["teacher_usd"]["value"] is None
    assert 0.9 <= told["coverage"]["low"] <= told["coverage"]["high"] <= 1


def test_an_unknown_task_and_a_missing_log_are_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", TASK, "--config", str(config)]) == 1
    assert "there is no log" in capsys.readouterr().err
    insert(migrated(config.parent / "home"), ["x"])
    assert main(["forecast", "nothing", "--config", str(config)]) == 1
    assert "task 'nothing' has no recorded exchange" in capsys.readouterr().err
