import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distiller.distillations import Distillations, said, trainer
from distiller.runs import DISTILL, FAILED, INTERRUPTED, OK, QUEUED, REFUSED, End, Run
from tests.servers import ended, eventually

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RUN = Run(
    "01", "distill:a", DISTILL, "a", "cron 1", "on a Sunday", 1, False, NOW, NOW, None, None, QUEUED, None, None, None,
    None, "exchange-9",
)  # fmt: skip
ELSEWHERE = "what it said is among the controller's messages"
# Says who it is and what it was given, then waits to be told to end.
WAITS = """
import os, pathlib, sys, time
from proxy.supervisor import end_with_parent
end_with_parent()
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
time.sleep(60)
"""
CONTROLLER = """
import asyncio, pickle, sys
from distiller.distillations import Distillations
run, program, file = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2], sys.argv[3]
asyncio.run(Distillations(lambda run, gpu: [sys.executable, "-c", program, file])(run, ""))
"""


def program(text: str) -> Distillations:
    return Distillations(lambda run, gpu: [sys.executable, "-c", text])


async def test_the_last_line_says_how_it_ended() -> None:
    line = json.dumps({"outcome": OK, "detail": "fine", "student": "student-1"})
    assert await program(f"print('a step'); print({line!r})")(RUN, "") == End(OK, "fine", student="student-1")


@pytest.mark.parametrize(
    ("printed", "code", "end"),
    [
        (b'{"outcome": "refused", "detail": "too few"}\n', 1, End(REFUSED, "too few")),
        (b"", 0, End(FAILED, f"it ended with exit code 0: {ELSEWHERE}")),
        (b"{}", 1, End(FAILED, f"it ended with exit code 1: {ELSEWHERE}")),
        (b'{"outcome": "fine"}', 2, End(FAILED, f"it ended with exit code 2: {ELSEWHERE}")),
        (b"\xff{", -9, End(FAILED, "it was killed by SIGKILL")),
        (b"a step", 128 + signal.SIGTERM, End(INTERRUPTED, "it was told to end; it goes on")),
        (b"", -signal.SIGINT, End(INTERRUPTED, "it was told to end; it goes on")),
    ],
)  # fmt: skip
def test_what_says_nothing_has_failed(printed: bytes, code: int, end: End) -> None:
    assert said(printed, code) == end


async def test_one_that_is_killed_has_failed_and_says_by_what() -> None:
    killed = await program("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")(RUN, "")
    assert killed == End(FAILED, "it was killed by SIGKILL")


async def test_cancelled_it_is_stopped_first(tmp_path: Path) -> None:
    file = tmp_path / "who"
    doing = asyncio.create_task(Distillations(lambda run, gpu: [sys.executable, "-c", WAITS, str(file)])(RUN, "3"))
    while not file.exists() or not file.read_text():
        await asyncio.sleep(0.02)
    pid, gpu = file.read_text().split()
    assert gpu == "3"
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_it_does_not_outlive_a_controller_that_is_killed(tmp_path: Path) -> None:
    import pickle

    file = tmp_path / "who"
    command = [sys.executable, "-c", CONTROLLER, pickle.dumps(RUN).hex(), WAITS, str(file)]
    controller = await asyncio.create_subprocess_exec(*command)
    while not file.exists() or not file.read_text():
        await asyncio.sleep(0.02)
    pid = int(file.read_text().split()[0])
    controller.send_signal(signal.SIGKILL)
    await controller.wait()
    eventually(lambda: ended(pid))


def test_the_trainer_is_told_task_gpu_exchanges_and_settings() -> None:
    command = trainer(Path("stillroom.toml"))(RUN, "1")
    assert command[1:] == [
        "-m", "stillroom", "trainer", "--config", "stillroom.toml", "--until", "exchange-9", "--gpu", "1", "--", "a",
    ]  # fmt: skip
    assert trainer(None)(replace(RUN, task="-x", until=None), "")[1:] == ["-m", "stillroom", "trainer", "--", "-x"]
