"""Owns the life of the local engine: starts vLLM, keeps it alive, loads adapters, checks that they answer as trained.

It must not know what a task or a stage is: it serves adapters by name and says in `EngineStatus` which ones are ready.

The engine runs as leader of its own process group under a small leash process, which holds one end of a pipe. When the
supervisor dies, however it dies, the pipe closes and the leash kills the whole group: no engine is left on the GPU.
"""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import aiohttp

from proxy.errors import BadInput, Unavailable
from proxy.waiting import pause

Command = tuple[list[str], dict[str, str]]
State = Literal["starting", "up", "down"]

_TOLERANCE = 8  # of every eight golden answers one may differ: batching and kernels change the last digits of a logit
_HEALTHY_S = 60.0  # after so long a life the back-off starts again at one second
_BACK_OFF_S = (1.0, 30.0)
_REQUEST_S = 180.0  # one golden answer or one load, on a slow CPU
# vLLM keeps one core for its front end. On few cores it is dear: with two, 1.65 answers of 20 tokens a second became
# 2.10 without (SmolLM2-135M, rank 8, eight requests at once).
_FEW_CORES = 4
_STOP_S = 10.0  # from SIGTERM to SIGKILL

# The leash outlives a SIGTERM to reap the engine and report its code (by a handler: SIG_IGN would be inherited).
# A signal becomes 128 + its number, so that 137 reads as it does everywhere: killed, often for want of memory.
_LEASH = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, lambda *_: None)
engine = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = engine.wait()
os._exit(code if code >= 0 else 128 - code)
"""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to start the engine. `kv_cache_gb` counts on a CPU only; a GPU engine takes what `extra_args` allow."""

    base: Path
    port: int
    dtype: str
    log: Path
    max_model_len: int = 2048
    kv_cache_gb: int = 1
    extra_args: tuple[str, ...] = ()
    device: Literal["cpu", "gpu"] = "cpu"
    max_loras: int = 4
    max_lora_rank: int = 32


@dataclass(frozen=True, slots=True)
class Golden:
    """A prompt and the text the student answered right after training, greedily, within `max_tokens`."""

    messages: Sequence[Mapping[str, str]]
    text: str
    max_tokens: int = 256


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine is now. `since` is in seconds of the epoch; `ready` and `failed` are adapters by name."""

    state: State
    since: float
    restarts: int
    reason: str
    url: str
    ready: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)


def engine_command(settings: EngineSettings) -> Command:
    """The arguments and the extra environment that start vLLM for these settings: the base, and adapters to come."""
    loras = ["--enable-lora", "--max-loras", str(settings.max_loras), "--max-lora-rank", str(settings.max_lora_rank)]
    argv, env = _vllm(settings, loras)
    return argv, env | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def whole_command(settings: EngineSettings) -> Command:
    """The same for a model that is a student by itself, asked one thing after the other and measured.

    A prompt of which the beginning is kept from another is read in other pieces: other last digits, and no measure.
    """
    return _vllm(settings, ["--no-enable-prefix-caching", "--enable-per-request-metrics"])


def _vllm(settings: EngineSettings, more: Sequence[str]) -> Command:
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(settings.base), "--served-model-name", "base", "--dtype", settings.dtype]
    argv += ["--host", "127.0.0.1", "--port", str(settings.port), "--max-model-len", str(settings.max_model_len)]
    argv += more
    env = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if settings.device == "cpu":
        argv += ["--enforce-eager", "--gpu-memory-utilization", "0.3"]
        env["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gb)
        if (os.cpu_count() or 1) <= _FEW_CORES:
            env["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return argv + list(settings.extra_args), env


def small_command(settings: EngineSettings) -> Command:
    """What starts the server of small students instead; `settings.base` is an encoder's folder."""
    argv = [sys.executable, "-m", "distiller.small_server", "--port", str(settings.port)]
    argv += ["--encoder", str(settings.base), *settings.extra_args]
    # Threads that spin at barriers would stall what else runs on the machine; nothing here may ask a hub.
    return argv, {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def without_secrets() -> dict[str, str]:
    """The environment for programs of others, which need no secrets: they run plug-ins, and they write logs."""
    return {key: value for key, value in os.environ.items() if not key.endswith(("_KEY", "_TOKEN", "_SECRET"))}


class Engine:
    """Supervises one engine process. Everything runs on the loop of `run`; `on_change` must not block."""

    def __init__(
        self,
        settings: EngineSettings,
        on_change: Callable[[EngineStatus], None] = lambda status: None,
        command: Callable[[EngineSettings], Command] = engine_command,
    ) -> None:
        """Nothing starts before `run`."""
        self._settings, self._on_change, self._command = settings, on_change, command
        self._paths: dict[str, Path] = {}  # every name ever wanted: a name means one adapter for ever
        self._wanted: dict[str, Sequence[Golden]] = {}
        url = f"http://127.0.0.1:{settings.port}"
        self._status = EngineStatus("down", time.time(), 0, "not started", url)
        self._up_at = 0.0  # loop time
        self._group: int | None = None

    def status(self) -> EngineStatus:
        """The engine as it is now."""
        return self._status

    def group(self) -> int | None:
        """The process group that the engine has run in last, with all of its processes; None before the first."""
        return self._group

    def want(self, adapters: Mapping[str, Path], golden: Mapping[str, Sequence[Golden]]) -> None:
        """Serve exactly these adapters, name -> folder, from the next second on. BadInput for a name used twice."""
        for name, path in adapters.items():
            if self._paths.get(name, path) != path:
                raise BadInput(f"adapter {name} is already {self._paths[name]}: give {path} another name")
            if not golden.get(name):
                raise BadInput(f"adapter {name} has no golden prompts: nothing could show that it answers as trained")
        self._paths.update(adapters)
        self._wanted = {name: tuple(golden[name]) for name in adapters}

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the engine alive until `stop`. Unavailable at once if the port is taken; later troubles are retried."""
        _claim_port(self._settings.port)
        delay = _BACK_OFF_S[0]
        while not stop.is_set():
            self._set("starting", self._status.reason if self._status.restarts else "")  # why it starts again
            try:
                await self._life(stop)
                self._set("down", "stopped")
            except Unavailable as trouble:
                healthy = self._status.state == "up" and asyncio.get_running_loop().time() - self._up_at >= _HEALTHY_S
                delay = _BACK_OFF_S[0] if healthy else delay
                self._set("down", str(trouble), restarts=self._status.restarts + 1)
                await pause(stop, delay)
                delay = min(_BACK_OFF_S[1], delay * 2)

    def _set(self, state: State, reason: str, restarts: int | None = None) -> None:
        count = self._status.restarts if restarts is None else restarts
        self._change(EngineStatus(state, time.time(), count, reason, self._status.url))

    def _change(self, status: EngineStatus) -> None:
        if status != self._status:
            self._status = status
            self._on_change(status)

    async def _life(self, stop: asyncio.Event) -> None:
        """One life of the process, from start to `stop`; Unavailable says why it ended before."""
        _claim_port(self._settings.port)
        log_from = self._settings.log.stat().st_size if self._settings.log.exists() else 0
        process = await self._start()
        self._group = process.pid
        exited, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
        attended = asyncio.create_task(self._attend())
        try:
            await asyncio.wait({attended, exited, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return
            await asyncio.wait({exited}, timeout=1.0)  # an engine that dies may first be seen not to answer
            if exited.done():
                line = last_line(self._settings.log, log_from)
                raise Unavailable(f"the engine exited with code {exited.result()}: {line} (see {self._settings.log})")
            await attended
        finally:
            attended.cancel()
            stopped.cancel()
            await asyncio.wait({attended})
            await _kill_group(process, exited)

    async def _start(self) -> asyncio.subprocess.Process:
        argv, extra = self._command(self._settings)
        self._settings.log.parent.mkdir(parents=True, exist_ok=True)
        with self._settings.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _LEASH, *argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=without_secrets() | extra,
                start_new_session=True,
            )

    async def _attend(self) -> None:
        """Wait until it answers (a big model takes minutes; only an exit ends the wait), then load and watch."""
        async with aiohttp.ClientSession(self._status.url, timeout=aiohttp.ClientTimeout(total=_REQUEST_S)) as http:
            while not await _healthy(http):
                await asyncio.sleep(0.2)
            self._up_at = asyncio.get_running_loop().time()
            self._set("up", "")
            missed = 0
            while missed < 3:
                await self._match(http)
                await asyncio.sleep(1.0)
                missed = 0 if await _healthy(http) else missed + 1
        raise Unavailable("the engine missed three health checks: it is started again")

    async def _match(self, http: aiohttp.ClientSession) -> None:
        """Unload what is no longer wanted, load what is new."""
        failed = {name: reason for name, reason in self._status.failed.items() if name in self._wanted}
        gone = self._status.ready - self._wanted.keys()
        self._change(replace(self._status, failed=failed, ready=self._status.ready - gone))
        try:
            for name in gone:
                await _post(http, "/v1/unload_lora_adapter", {"lora_name": name})
            for name, golden in self._wanted.items():  # `want` replaces the mapping, it never changes it
                if name not in self._status.ready and name not in self._status.failed:
                    await self._load(http, name, golden)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"the engine did not answer while loading adapters: {type(error).__name__}") from error

    async def _load(self, http: aiohttp.ClientSession, name: str, golden: Sequence[Golden]) -> None:
        body = {"lora_name": name, "lora_path": str(self._paths[name].absolute())}
        status, answer = await _post(http, "/v1/load_lora_adapter", body)
        reason = f"not loaded, HTTP {status}: {answer[:300]}" if status != 200 else await _differs(http, name, golden)
        if reason and status == 200:
            await _post(http, "/v1/unload_lora_adapter", {"lora_name": name})
        if reason:
            self._change(replace(self._status, failed={**self._status.failed, name: reason}))
        else:
            self._change(replace(self._status, ready=self._status.ready | {name}))


async def _differs(http: aiohttp.ClientSession, name: str, golden: Sequence[Golden]) -> str:
    """Why the adapter does not answer as it did after training; empty when it does, one in eight aside."""
    wrong = []
    for case in golden:
        body = {"model": name, "messages": list(case.messages), "temperature": 0, "max_tokens": case.max_tokens}
        status, answer = await _post(http, "/v1/chat/completions", body)
        if status != 200:
            return f"a golden prompt failed, HTTP {status}: {answer[:300]}"
        if (text := _content(answer)) != case.text:
            wrong.append(f"{case.text[:80]!r} became {text[:80]!r}")
    if len(wrong) <= len(golden) // _TOLERANCE:
        return ""
    return f"{len(wrong)} of {len(golden)} golden answers differ, such as {wrong[0]}"


def _content(answer: str) -> str:
    return str(json.loads(answer)["choices"][0]["message"]["content"] or "")


async def _post(http: aiohttp.ClientSession, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
    async with http.post(path, json=body) as response:
        return response.status, await response.text()


async def _healthy(http: aiohttp.ClientSession) -> bool:
    try:
        async with http.get("/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _kill_group(process: asyncio.subprocess.Process, exited: "asyncio.Task[int]") -> None:
    _signal_group(process.pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(asyncio.shield(exited), _STOP_S)
    except TimeoutError:
        pass
    finally:
        _signal_group(process.pid, signal.SIGKILL)  # also what the engine left behind when it went by itself
    await exited


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it is gone already


def _claim_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            message = (
                f"port {port} is not free for the engine ({error.strerror}): stop what uses it or set another port"
            )
            raise Unavailable(message) from error


def last_line(log: Path, start: int) -> str:
    """What the engine said last: its last error that is not a pointer to another one, else its last line."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65_536))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip(" ^~\t")]
    errors = [line for line in lines if re.search(r"\w(?:Error|Exception)\b", line) and "root cause" not in line]
    return (errors or lines or ["it wrote nothing"])[-1][-300:]
