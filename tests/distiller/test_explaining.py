import asyncio
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distiller.dataset import dataset
from distiller.explaining import Explaining, explain, with_rationales
from distiller.rationales import Wish
from distiller.settings import DistillerSettings, Settings
from proxy.errors import BadInput
from proxy.log import Log
from proxy.settings import TeacherSettings
from router.settings import MoneySettings, Price
from tests.deployment import PROGRAM, ROOT
from tests.distiller.toy_task import ANSWERS
from tests.logs import migrated
from tests.router.conftest import TASK, insert
from tests.servers import eventually, serving
from tests.tutors import Tutor

PRICES = MoneySettings(prices={"gpt-4o": Price(input=1.0, output=2.0)})


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    for number in range(20):
        for colour, answer in ANSWERS.items():
            insert(log, [f"lamp {number} is {colour}"], answer)
    return log


def asked(log: Log, tutor: Tutor, key_env: str = "TUTOR_KEY", wish: Wish | None = None) -> Explaining:
    async def run() -> Explaining:
        options = DistillerSettings(min_exchanges=20, holdout=10)
        with serving(tutor.app()) as url:
            settings = Settings(teacher=TeacherSettings(url=url, key_env=key_env), money=PRICES, distiller=options)
            return await explain(log, settings, TASK, wish or Wish(5.0, 0.5), asyncio.Event(), lambda *_: None)

    return asyncio.run(run())


def test_the_teacher_is_asked_with_our_key_about_training_rows_only(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTOR_KEY", "sk-ours")
    tutor = Tutor(text="The lamp says stop.")
    done = asked(log, tutor)
    assert (done.rows, done.keys, done.asked.ended) == (50, (), "done")
    assert done.asked.kept == len(tutor.asked) == done.usable + done.contradicting > 10
    assert {one["authorization"] for one in tutor.asked} == {"Bearer sk-ours"}
    answers = [one["messages"][-2]["content"] for one in tutor.asked]
    assert done.usable == answers.count("stop") > 0
    newest = {row[0] for row in log.query("SELECT id FROM exchanges ORDER BY id DESC LIMIT 10")}
    assert newest.isdisjoint(row[0] for row in log.query("SELECT exchange FROM rationales"))


def test_answers_that_reason_themselves_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTOR_KEY", "sk-ours")
    log, tutor = migrated(tmp_path), Tutor()
    for number in range(60):
        why = f"The lamp with number {number} is red, as one can read there, and at a red lamp everybody has to stop."
        insert(log, [f"lamp {number}"], json.dumps({"reasoning": why, "answer": "stop"}))
    assert asked(log, tutor).keys == ("reasoning",)
    assert tutor.asked == []


def test_before_students_learn_rationales_are_asked_for_within_the_budget_of_the_settings(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_KEY", "sk-ours")
    tutor = Tutor(text="The lamp says stop.")
    options = DistillerSettings(min_exchanges=20, holdout=10, students=("explained",), rationale_share=1.0)
    with serving(tutor.app()) as url:
        settings = Settings(teacher=TeacherSettings(url=url, key_env="TUTOR_KEY"), money=PRICES, distiller=options)
        data = dataset(log, TASK, settings)
        assert with_rationales(log, settings, data, lambda *_: None).rationales == {}
        assert tutor.asked == []  # No budget, no question.
        paid = replace(settings, distiller=replace(options, rationale_budget=5.0))
        told = with_rationales(log, paid, data, lambda *_: None)
    assert told.rationales == {row.exchange_id: "The lamp says stop." for row in data.train}
    assert len(tutor.asked) == len(data.train) == 50
    assert with_rationales(log, settings, data, lambda *_: None).rationales == told.rationales


def test_a_teacher_that_fails_leaves_what_there_is(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TUTOR_KEY", "sk-ours")
    options = DistillerSettings(min_exchanges=20, holdout=10, rationale_budget=5.0, rationale_share=1.0)
    with serving(Tutor(fails_at=3).app()) as url:
        settings = Settings(teacher=TeacherSettings(url=url, key_env="TUTOR_KEY"), money=PRICES, distiller=options)
        told = with_rationales(log, settings, dataset(log, TASK, settings), lambda *_: None)
    assert len(told.rationales) == 3
    assert "not every rationale was told: the teacher answered with status 503" in caplog.text


def test_without_a_key_of_ours_nobody_is_asked(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"set teacher\.key_env"):
        asked(log, Tutor(), key_env="")
    monkeypatch.delenv("TUTOR_KEY", raising=False)
    with pytest.raises(BadInput, match="TUTOR_KEY, which is not set"):
        asked(log, Tutor())


def test_a_log_from_before_there_were_rationales_is_brought_up_to_date(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_KEY", "sk-ours")
    log.query("DROP TABLE rationales")
    log.query("DELETE FROM migrations WHERE number >= 7")
    assert asked(log, Tutor()).asked.kept > 0


def test_ctrl_c_keeps_what_was_answered_and_the_same_command_goes_on(log: Log, tmp_path: Path) -> None:
    log.close()
    tutor, config = Tutor(delay=0.3), tmp_path / "stillroom.toml"
    with serving(tutor.app()) as url:
        config.write_text(
            f'home = "."\n[teacher]\nurl = "{url}"\nkey_env = "TUTOR_KEY"\n'
            "[distiller]\nmin_exchanges = 20\nholdout = 10\n"
        )
        command = [*PROGRAM, "explain", TASK, "--budget", "5", "--share", "1", "--json", "--config", str(config)]
        options: Any = {"cwd": ROOT, "env": {**os.environ, "TUTOR_KEY": "sk-ours"}, "text": True}
        first = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
        eventually(lambda: len(tutor.asked) > 4, 120)
        first.send_signal(signal.SIGINT)
        done = json.loads(first.communicate()[0])
        tutor.delay = 0.0
        rest = json.loads(subprocess.run(command, check=True, capture_output=True, **options).stdout)
    assert (done["asked"]["ended"], first.returncode) == ("stopped", 0)
    assert 4 < done["asked"]["kept"] < 50
    assert (rest["asked"]["known"], rest["asked"]["ended"]) == (done["asked"]["kept"], "done")
    assert rest["asked"]["known"] + rest["asked"]["kept"] == len(tutor.asked) == 50
