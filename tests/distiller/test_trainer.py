import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distiller import trainer
from distiller.runs import REFUSED, End
from distiller.settings import DistillerSettings, Settings
from distiller.trainer import distill_once, place, sweep
from proxy.errors import Unavailable
from router.settings import RouterSettings, TaskSettings
from tests.logs import migrated
from tests.router.conftest import TASK, insert


def test_what_is_refused_is_said_with_its_reason(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    insert(log, ["a"] * 3)
    end = distill_once(log, Settings(home=str(tmp_path)), TASK, "")
    assert end.outcome == REFUSED
    assert "has 1 exchanges fit to learn from and 200 are needed" in end.detail
    assert distill_once(log, Settings(home=str(tmp_path)), "nothing", "").outcome == REFUSED


def test_what_an_own_evaluator_raised_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text("def score(request, teacher, candidate):\n    raise ValueError('in a secret')\n")
    monkeypatch.syspath_prepend(tmp_path)
    log = migrated(tmp_path)
    insert(log, [f"question {number}" for number in range(10)])
    options = DistillerSettings(min_exchanges=5)
    router = RouterSettings(tasks={TASK: TaskSettings(evaluator="mine:score")})
    end = distill_once(log, Settings(home=str(tmp_path), distiller=options, router=router), TASK, "")
    assert end == End(REFUSED, "ValueError: what it said is among the controller's messages")
    assert "a secret" in caplog.text


def test_a_place_has_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "_PATIENCE", 0.3)
    with place(tmp_path, "gpu 0"):
        with place(tmp_path, "gpu 1"):
            pass
        with pytest.raises(Unavailable, match="still running there"), place(tmp_path, "gpu 0"):
            pass
    with place(tmp_path, "gpu 0"):
        pass


def test_what_the_killed_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = tmp_path / f".making-{os.getpid()}-abc"
    for folder in (mine, tmp_path / f".making-{ended.pid}-abc", tmp_path / ".making-old", tmp_path / "student-1"):
        (folder / "adapter").mkdir(parents=True)
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, ".making-old", "student-1"])


def test_told_to_end_it_cleans_up_first(tmp_path: Path) -> None:
    text = (
        "import sys, time; from distiller.trainer import settle_in; settle_in()\n"
        "try: print('ready', flush=True); time.sleep(60)\n"
        "finally: print('clean', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("clean\n", 128 + signal.SIGTERM)
