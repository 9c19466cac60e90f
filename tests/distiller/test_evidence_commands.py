import json
from pathlib import Path

import pytest

from proxy.log import Log
from router.lifecycle import advance
from router.policy import load_policy
from router.settings import RouterSettings
from stillroom import main
from tests.logs import migrated
from tests.router.conftest import TASK, judged, known


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "stillroom.toml"
    file.write_text('home = "home"')
    return file


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path / "home")


def run(config: Path, *words: str) -> int:
    return main([words[0], "--config", str(config), *words[1:]])


def test_without_a_certificate_it_says_what_is_missing(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(log, known(log), [1.0] * 10)
    assert run(config, "certificate", TASK) == 1
    assert "student-1 has no certificate: not yet" in capsys.readouterr().err
    assert run(config, "promote", TASK) == 1
    assert "no promotion without a certificate" in capsys.readouterr().err


def test_a_certified_candidate_is_shown_promoted_and_rolled_back(
    config: Path, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = known(log)
    judged(log, candidate, [1.0] * 200)
    advance(log, candidate, RouterSettings())
    assert run(config, "certificate", TASK) == 0
    assert json.loads(capsys.readouterr().out)["candidate"] == candidate.id
    assert run(config, "promote", TASK, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"candidate": candidate.id, "stage": "live"}
    assert run(config, "rollback", TASK, "--reason", "wrong on refunds") == 0
    assert capsys.readouterr().out == f"the teacher answers {TASK}; retired: {candidate.id}\n"
    assert run(config, "rollback", TASK, "--reason", "again") == 0
    assert capsys.readouterr().out == f"the teacher answered {TASK} already\n"
    assert load_policy(config.parent / "home" / "state" / "policy.json").routes == {}


def test_the_stages_are_shown(config: Path, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    judged(log, known(log), [1.0] * 3)
    assert run(config, "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["engine"]["state"] == "not started"
    assert (shown["feedback_ignored"], shown["candidates"][0]["feedback"]["scored"]) == (0, 0)
    assert [(line["candidate"], line["stage"]) for line in shown["candidates"]] == [("student-1", "shadow")]
