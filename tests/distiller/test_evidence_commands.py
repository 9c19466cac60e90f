import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.settings import load_settings
from proxy.deciding import Asked
from proxy.log import Log
from router.decide import Router
from router.lifecycle import advance, promote, publish
from router.policy import PolicyWatcher, load_policy
from router.settings import RouterSettings
from stillroom import main
from tests.logs import migrated
from tests.router.conftest import PATH, TASK, chat, judged, known


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
    advance(log, candidate, RouterSettings(canary_shares=(0.3,)))
    assert run(config, "certificate", TASK) == 0
    assert json.loads(capsys.readouterr().out)["candidate"] == candidate.id
    assert run(config, "promote", TASK, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"candidate": candidate.id, "stage": "live", "share": 1.0}
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


def test_a_task_is_frozen_shown_and_thawed(config: Path, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    known(log)
    assert run(config, "freeze", TASK, "--reason", "audit week") == 0
    assert capsys.readouterr().out == f"{TASK} is frozen: it can still be taken back\n"
    assert run(config, "promote", TASK) == 1
    assert "is frozen (audit week)" in capsys.readouterr().err
    assert run(config, "status", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["frozen"][TASK]["reason"] == "audit week"
    assert "frozen since" in shown["candidates"][0]["next"]
    assert run(config, "freeze", TASK, "--off", "--reason", "over", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"task": TASK, "frozen": False}
    assert run(config, "freeze", TASK, "--off", "--reason", "over") == 1
    assert "is not frozen" in capsys.readouterr().err


async def test_a_rollback_reaches_every_worker_within_two_seconds(config: Path, log: Log) -> None:
    judged(log, known(log), [1.0] * 200)
    settings = load_settings(config)
    router = replace(settings.router, canary_shares=(1.0,), holdback_share=0.0)
    promote(log, TASK, router)
    publish(log, router, {"student-1": "http://127.0.0.1:9"}, settings.policy)
    workers = [Router(PolicyWatcher(settings.policy)) for _ in range(3)]
    asked = Asked(PATH, json.dumps({"model": "gpt-4o", "messages": chat("mine?")}).encode(), TASK)
    async with AsyncExitStack() as running:
        for worker in workers:
            await running.enter_async_context(worker.running())
        assert {worker.decide(asked).served_by for worker in workers} == {"student-1"}
        assert await asyncio.to_thread(run, config, "rollback", TASK, "--reason", "wrong") == 0
        async with asyncio.timeout(2):
            while any(worker.decide(asked).answer for worker in workers):
                await asyncio.sleep(0.01)
