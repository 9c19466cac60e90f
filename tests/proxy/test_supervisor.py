import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.supervisor import Child, supervise
from tests.servers import ended, eventually

# Tells its process id, then waits to be stopped.
WAITS = "import os, signal, sys; print(os.getpid(), file=open(sys.argv[1], 'a'), flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
PARENT = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
signal.pause()
"""
CHILD = "from proxy.supervisor import end_with_parent; end_with_parent(); " + WAITS


def pids(file: Path) -> list[int]:
    """Of the children so far; a line is complete with its newline."""
    text = file.read_text() if file.exists() else ""
    return [int(line) for line in text.rpartition("\n")[0].split()]


async def started(file: Path, count: int) -> list[int]:
    found: list[int] = await asyncio.to_thread(eventually, lambda: pids(file) if len(pids(file)) >= count else None)
    return found


@contextlib.asynccontextmanager
async def supervising(
    *children: Child, grace: float = 30.0, buried: Callable[[int], None] = lambda pid: None
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.create_task(supervise(children, stop, grace, buried))
    try:
        yield
    finally:
        stop.set()
        await running


def waiting(file: Path, program: str = WAITS) -> Child:
    return Child("child", [sys.executable, "-c", program, str(file)])


async def test_a_killed_child_is_started_again_and_stopped_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, other = tmp_path / "pids", tmp_path / "other"
    buried: list[int] = []
    async with supervising(waiting(file), waiting(other), buried=buried.append):
        (first,) = await started(file, 1)
        await started(other, 1)
        os.kill(first, signal.SIGKILL)
        await started(file, 2)
    assert len(pids(file)) == 2
    assert buried == [first]
    assert len(pids(other)) == 1
    assert all(ended(pid) for pid in pids(file) + pids(other))
    assert "child ended (-9); starting it again" in caplog.text


async def test_who_does_not_stop_in_time_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with supervising(waiting(tmp_path / "pids", DEAF), grace=0.1):
        (pid,) = await started(tmp_path / "pids", 1)
    assert ended(pid)
    assert "child did not stop within" in caplog.text


async def test_stopping_does_not_wait_for_the_back_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with supervising(Child("child", ["false"])):
        await asyncio.to_thread(eventually, lambda: "in 0.8 s" in caplog.text)
    assert "ended (1); starting it again in 0.4 s" in caplog.text


async def test_environment_and_descriptors_are_passed_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    program = "import os, sys; os.write(int(sys.argv[1]), (os.environ['EXTRA'] + os.environ['PATH']).encode())"
    child = Child("child", [sys.executable, "-c", program, str(writing)], {"EXTRA": "more:"}, [writing])
    async with supervising(child):
        told = await asyncio.to_thread(os.read, reading, 1 << 16)
    os.close(reading)
    os.close(writing)
    assert told.decode() == "more:" + os.environ["PATH"]


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(file)]) as parent:
        (child,) = eventually(lambda: pids(file))
        assert not ended(child)
        parent.kill()
    eventually(lambda: ended(child))
