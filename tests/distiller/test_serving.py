"""The engine's supervisor, against a small real process; the real vLLM is tested with the whole loop."""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from distiller.serving import Command, Engine, EngineSettings, EngineStatus, Golden, engine_command, whole_command
from proxy.errors import BadInput, Unavailable
from tests.servers import ended

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_engine.py")


def fake(settings: EngineSettings) -> Command:
    return [sys.executable, str(FAKE), str(settings.port)], {"FAKE": "1"}


def script(source: str) -> Callable[[EngineSettings], Command]:
    return lambda settings: ([sys.executable, "-S", "-c", source], {})


@pytest.fixture
def settings(tmp_path: Path) -> EngineSettings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return EngineSettings(base=tmp_path / "base", port=port, dtype="float32", log=tmp_path / "logs" / "engine.log")


def golden(name: str, wrong: int = 0, of: int = 2) -> list[Golden]:
    return [Golden(({"role": "user", "content": f"q{i}"},), f"{name}:q{i}{'!' * (i < wrong)}") for i in range(of)]


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def info(settings: EngineSettings, path: str = "/info") -> Any:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{settings.port}{path}") as response:
        return await response.json(content_type=None)


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Awaitable[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(engine.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait({task})


async def test_up_loaded_and_stopped(settings: EngineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    changes: list[EngineStatus] = []
    engine = Engine(settings, changes.append, fake)
    engine.want({"a": tmp_path}, {"a": golden("a")})
    async with running(engine):
        await until(lambda: "a" in engine.status().ready)
        seen = await info(settings)
        assert seen["loaded"] == ["a"]
        assert seen["env"]["FAKE"] == "1"
        assert "OPENAI_API_KEY" not in seen["env"]
        engine.want({"b": tmp_path}, {"b": golden("b")})
        await until(lambda: engine.status().ready == {"b"})
        assert (await info(settings))["loaded"] == ["b"]
    assert ended(seen["pid"])
    await until(lambda: ended(seen["child"]))  # killed as well; nobody can wait for a grandchild
    assert [change.state for change in changes] == ["starting", "up", "up", "up", "up", "down"]
    assert changes[-1].reason == "stopped"
    assert changes[-1].ready == frozenset()
    assert changes[-1].restarts == 0


async def test_a_killed_engine_comes_back_with_its_adapters(settings: EngineSettings, tmp_path: Path) -> None:
    changes: list[EngineStatus] = []
    engine = Engine(settings, changes.append, fake)
    engine.want({"a": tmp_path}, {"a": golden("a")})
    async with running(engine):
        await until(lambda: "a" in engine.status().ready)
        first = await info(settings)
        os.kill(first["pid"], signal.SIGKILL)
        await until(lambda: engine.status().restarts == 1 and "a" in engine.status().ready)
        second = await info(settings)
        assert second["pid"] != first["pid"]
        assert second["loaded"] == ["a"]
        assert ended(first["child"])
        down = next(change for change in changes if change.state == "down")
        assert "exited with code 137" in down.reason
        assert down.ready == frozenset()


async def test_an_engine_that_answers_no_health_check_is_replaced(settings: EngineSettings) -> None:
    engine = Engine(settings, command=fake)
    async with running(engine):
        await until(lambda: engine.status().state == "up")
        first = await info(settings)
        await info(settings, "/sicken")
        await until(lambda: engine.status().restarts == 1 and engine.status().state == "up")
        assert ended(first["pid"])
        assert (await info(settings))["pid"] != first["pid"]


async def test_an_adapter_that_answers_otherwise_is_not_served(settings: EngineSettings, tmp_path: Path) -> None:
    engine = Engine(settings, command=fake)
    adapters = dict.fromkeys(["good", "bad", "near", "far"], tmp_path) | {"missing": tmp_path / "missing"}
    cases = {"good": golden("good"), "bad": golden("bad", wrong=1), "missing": golden("missing")}
    cases |= {"near": golden("near", wrong=1, of=8), "far": golden("far", wrong=2, of=8)}
    engine.want(adapters, cases)
    async with running(engine):
        await until(lambda: len(engine.status().ready) + len(engine.status().failed) == 5)
        status = engine.status()
        assert status.ready == {"good", "near"}
        assert status.failed["bad"] == "1 of 2 golden answers differ, such as 'bad:q0!' became 'bad:q0'"
        assert status.failed["far"].startswith("2 of 8 golden answers differ")
        assert "404" in status.failed["missing"]
        assert "no adapter found for missing" in status.failed["missing"]
        assert (await info(settings))["loaded"] == ["good", "near"]


async def test_the_reason_of_a_failed_start_is_in_the_status(settings: EngineSettings) -> None:
    settings.log.parent.mkdir()
    settings.log.write_text("OldError: from the life before\n")
    source = "import sys; print('ValueError: no such model\\nRuntimeError: See root cause above.\\n  ^^^'); sys.exit(3)"
    changes: list[EngineStatus] = []
    engine = Engine(settings, changes.append, script(source))
    async with running(engine):
        await until(lambda: engine.status().restarts == 2)
    reasons = [change.reason for change in changes if change.restarts and change.state == "down"]
    assert reasons[0].startswith("the engine exited with code 3: ValueError: no such model (see ")
    assert "up" not in [change.state for change in changes]


async def test_a_silent_exit_has_a_reason_too(settings: EngineSettings) -> None:
    engine = Engine(settings, command=script("raise SystemExit(4)"))
    async with running(engine):
        await until(lambda: engine.status().restarts == 1)
        assert "exited with code 4: it wrote nothing" in engine.status().reason


async def test_a_process_that_ignores_sigterm_is_killed(
    settings: EngineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distiller.serving._STOP_S", 0.2)
    pid = tmp_path / "pid"
    source = f"""
    import os, pathlib, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path({str(pid) + ".new"!r}).write_text(str(os.getpid()))
    os.rename({str(pid) + ".new"!r}, {str(pid)!r})
    time.sleep(600)
    """
    engine = Engine(settings, command=script(textwrap.dedent(source)))
    async with running(engine):
        await until(pid.exists)
        assert not ended(int(pid.read_text()))
    await until(lambda: ended(int(pid.read_text())))
    assert engine.status().reason == "stopped"


async def test_a_port_in_use_is_said_at_once(settings: EngineSettings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port))
        other.listen()
        with pytest.raises(Unavailable, match=f"port {settings.port} is not free"):
            await Engine(settings, command=fake).run(asyncio.Event())


async def test_no_engine_outlives_a_killed_supervisor(settings: EngineSettings) -> None:
    source = f"""
    import asyncio, sys
    from pathlib import Path
    from distiller.serving import Engine, EngineSettings
    settings = EngineSettings(Path("base"), {settings.port}, "float32", Path({str(settings.log)!r}))
    command = lambda s: ([sys.executable, {str(FAKE)!r}, str(s.port)], {{}})
    asyncio.run(Engine(settings, lambda status: print(status.state, flush=True), command).run(asyncio.Event()))
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, stdout=subprocess.PIPE
    ) as supervisor:
        try:
            assert supervisor.stdout is not None
            lines = [await asyncio.to_thread(supervisor.stdout.readline) for _ in range(2)]
            assert lines == [b"starting\n", b"up\n"]
            seen = await info(settings)
            assert not ended(seen["pid"])
        finally:
            supervisor.kill()
    await until(lambda: ended(seen["pid"]) and ended(seen["child"]))


def test_a_name_is_one_adapter_for_ever(settings: EngineSettings, tmp_path: Path) -> None:
    engine = Engine(settings)
    engine.want({"a": tmp_path}, {"a": golden("a")})
    engine.want({}, {})
    engine.want({"a": tmp_path}, {"a": golden("a")})
    with pytest.raises(BadInput, match=r"give .* another name"):
        engine.want({"a": tmp_path / "other"}, {"a": golden("a")})
    with pytest.raises(BadInput, match="no golden prompts"):
        engine.want({"b": tmp_path}, {})


def test_the_command_of_the_real_engine(settings: EngineSettings) -> None:
    argv, env = engine_command(settings)
    assert argv[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    pairs = dict(itertools.pairwise(argv))
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--served-model-name"] == "base"
    assert pairs["--port"] == str(settings.port)
    assert "--enforce-eager" in argv
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert env["VLLM_NO_USAGE_STATS"] == "1"
    gpu = EngineSettings(settings.base, 1, "auto", settings.log, device="gpu", extra_args=("--quantization", "fp8"))
    argv, env = engine_command(gpu)
    assert "--enforce-eager" not in argv
    assert argv[-2:] == ["--quantization", "fp8"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert json.loads(json.dumps(env)) == env


def test_a_whole_student_is_served_without_adapters_and_measured(settings: EngineSettings) -> None:
    (ours, env), (theirs, other) = whole_command(settings), engine_command(settings)
    assert "--enable-per-request-metrics" in ours
    assert "--no-enable-prefix-caching" in ours
    assert not {"--enable-lora", "--max-loras", "--max-lora-rank"} & set(ours)
    assert "--enable-lora" in theirs
    assert env == {name: value for name, value in other.items() if name != "VLLM_ALLOW_RUNTIME_LORA_UPDATING"}


async def test_the_group_of_an_engine_holds_all_of_its_processes(settings: EngineSettings) -> None:
    engine = Engine(settings, command=fake)
    assert engine.group() is None
    async with running(engine):
        await until(lambda: engine.status().state == "up")
        seen = await info(settings)
        group = engine.group()
        assert {os.getpgid(seen["pid"]), os.getpgid(seen["child"])} == {group}
    assert engine.group() == group
