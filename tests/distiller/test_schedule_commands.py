import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stillroom
from distiller.runs import FAILED, Run, runs
from proxy.log import Log
from proxy.supervisor import ours
from router.controller import only_one
from tests.logs import migrated
from tests.router.conftest import TASK, insert


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stillroom.toml").write_text('home = "home"\n[schedule]\ntimezone = "UTC"\n')
    (tmp_path / "home").mkdir()
    log = migrated(tmp_path / "home")
    insert(log, ["a"])
    return log


def run(*arguments: str) -> int:
    return stillroom.main(list(arguments))


def only(log: Log) -> Run:
    (found,) = runs(log)
    return found


def test_what_is_asked_for_is_a_row_that_the_controller_will_see(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schedule", "run", TASK, "--reason", "before the release") == 0
    asked = only(log)
    assert (asked.job, asked.by_hand, asked.reason, asked.state) == (
        f"distill:{TASK}", True, "before the release", "queued",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert f"distill:{TASK} is queued" in said
    assert "no controller runs here" in said
    with only_one(Path("home")):
        assert run("schedule", "run", TASK, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["controller"] is True
    assert [one["id"] for one in found["runs"]] == [asked.id]


def test_jobs_and_runs_are_listed(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    run("schedule", "run", "retention")
    run("schedule", "pause", "prices", "--reason", "a migration")
    capsys.readouterr()
    assert run("schedule", "list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["controller"], found["timezone"], found["quiet_hours"]) == (False, "UTC", "")
    jobs = {job["name"]: job for job in found["jobs"]}
    assert jobs["retention"]["next"].endswith("T01:37:00+00:00")
    assert jobs["prices"]["paused"]["reason"] == "a migration"
    assert [one["job"] for one in found["runs"]] == ["retention"]
    assert run("schedule", "list") == 0
    assert "Latest runs" in capsys.readouterr().out
    assert run("schedule", "resume", "prices") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "say which job: stillroom schedule run NAME"),
        (["run", "nothing"], "there is no job or task 'nothing'"),
        (["resume", "retention"], "retention is not paused"),
    ],
)
def test_what_cannot_be_is_one_line(
    log: Log, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run("schedule", *arguments) == 1
    assert said in capsys.readouterr().err


def test_the_trainer_says_how_it_ended(tmp_path: Path) -> None:
    """In a process of its own, as it ends with the one that started it and steps back behind all others."""
    command = [sys.executable, "-m", "stillroom", "trainer", "--", TASK]
    environment = {**os.environ, **ours(), "PYTHONPATH": str(Path(stillroom.__file__).parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 1
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["outcome"], said["student"]) == (FAILED, None)
    assert "there is no log under" in said["detail"]
