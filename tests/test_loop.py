"""The whole loop on real engines: record, distill a toy, serve it with vLLM, certify, route, survive, roll back."""

import subprocess
import time
from pathlib import Path

import openai
import pytest

from proxy.traffic_file import Row
from tests.deployment import Deployment, deployed
from tests.distiller.toy import build_toy
from tests.lamps import SETTINGS, TASK, WORDS, ask, lamps, stage
from tests.servers import eventually, free_port

pytestmark = [pytest.mark.loop, pytest.mark.timeout(900)]

ROUTER = """
holdback_share = 0.0  # every later row is the student's
audit_share = 0.5
[money]
engine_hour = 1.0
"""


def test_the_whole_loop(tmp_path: Path) -> None:
    traffic = lamps(900)
    base = tmp_path / "toy"
    build_toy(base, [row.messages[1]["content"] + row.answer for row in traffic[:200]])
    settings = SETTINGS.format(base=base, port=free_port(), router=ROUTER)
    with (
        deployed(tmp_path, traffic, settings) as still,
        openai.OpenAI(base_url=still.url, api_key="sk-client", max_retries=0) as client,
    ):
        for number, row in enumerate(traffic[:300]):
            assert ask(client, row, stream=number % 2 == 1) == (row.answer, "teacher")
        eventually(lambda: still.count() == 300)
        (line,) = still.json("tasks")
        assert (line["task"], line["exchanges"], line["unpriced"]) == (TASK, 300, 0)
        student = distilled(still)
        certified(still, client, traffic[300:800], student)
        live(still, client, traffic[800:], student)


def distilled(still: Deployment) -> str:
    assert "no candidate" in still.run("certificate", TASK, code=1)
    done = still.json("distill", TASK)
    assert done["trained_rows"] == 240
    assert done["holdout"]["student"] > max(done["holdout"]["base"], done["holdout"]["majority"])
    student: str = done["bundle"]["id"]
    assert "no promotion without a certificate" in still.run("promote", TASK, code=1)
    eventually(lambda: still.json("status")["engine"].get("ready") == [student], 300)
    return student


def certified(still: Deployment, client: openai.OpenAI, later: list[Row], student: str) -> None:
    """Traffic arrives until the evidence has carried the student to live; nothing is routed before a certificate."""
    rest = list(later)
    while stage(still) == "shadow":
        part, rest = rest[:50], rest[50:]
        assert part, still.run("status")
        known = stage(still)
        for row in part:
            answer, who = ask(client, row)
            assert answer == row.answer
            assert who == "teacher" or known != "shadow" or stage(still) != "shadow"
        time.sleep(2)
    while stage(still) == "canary" and rest:
        row = rest.pop()
        ask(client, row)
    assert eventually(lambda: stage(still) == "live", 30)
    proof = still.run("certificate", TASK)
    assert student in proof
    assert '"proven": true' in proof


def live(still: Deployment, client: openai.OpenAI, rest: list[Row], student: str) -> None:
    def served(row: Row, stream: bool = False) -> str:
        answer, who = ask(client, row, stream)
        assert answer in WORDS.values()
        return who

    assert eventually(lambda: served(rest[0]) == student, 10)
    assert ask(client, rest[1], stream=True) == (rest[1].answer, student)
    subprocess.run(["pkill", "-KILL", "-f", f"api_server --model {still.config.parent / 'toy'}"], check=True)
    for row in rest[2:20]:  # The engine is gone: the teacher answers, the client notices nothing.
        assert ask(client, row)[0] == row.answer
    assert "exited with code" in eventually(lambda: still.json("status")["engine"]["reason"], 20)
    assert eventually(lambda: served(rest[20]) == student, 300)
    before = time.monotonic()
    still.run("rollback", TASK, "--reason", "a test")
    assert eventually(lambda: served(rest[21]) == "teacher", 2 + time.monotonic() - before)
    assert still.json("report")["tasks"][0]["served"] >= 2
    assert still.json("status")["candidates"][0]["reason"] == "rolled back: a test"
