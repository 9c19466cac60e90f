"""Owns which engines run for the students there are: vLLM for adapters, the small server for small students.

Each starts with the first student that needs it, and runs until the end. Must not know the log.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from distiller.base import compute_dtype
from distiller.serving import Command, Engine, EngineSettings, EngineStatus, Golden, engine_command, small_command
from distiller.settings import Settings
from proxy.errors import BadInput
from proxy.files import put
from router.registry import Candidate

VLLM, SMALL = "vllm", "small"  # as a student's card names its engine; one without a name is vLLM's


@dataclass(frozen=True, slots=True)
class _Kind:
    """An engine: how it is set up for its first students, where they lie in a bundle, what starts it, its state."""

    settings: Callable[[Settings, Sequence[Candidate]], EngineSettings]
    folder: str
    command: Callable[[EngineSettings], Command]
    state: Path


class Engines:
    """The engines that run. Everything happens on the loop that `want` is called on."""

    def __init__(self, settings: Settings) -> None:
        """Nothing starts before a student is wanted."""
        self._settings = settings
        self._kinds = {
            VLLM: _Kind(_vllm_settings, "adapter", engine_command, settings.engine_state),
            SMALL: _Kind(_small_settings, "small", small_command, settings.small_state),
        }
        self._engines: dict[str, Engine] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def started(self) -> bool:
        """Whether any engine runs, idle or not."""
        return bool(self._engines)

    def served(self) -> dict[str, str]:
        """Students that are loaded and checked, and where."""
        up = [status for status in self._statuses() if status.state == "up"]
        return {name: status.url for status in up for name in status.ready}

    def state(self) -> str | None:
        """That of the engine that is worst off; None where there is none."""
        states = {status.state for status in self._statuses()}
        return next((state for state in ("down", "starting", "up") if state in states), None)

    def want(self, students: Sequence[Candidate], stop: asyncio.Event) -> None:
        """Serve exactly these from the next second on; an engine that is needed now runs until `stop`.

        Raises what ended an engine for good, and BadInput for a student that wants an engine there is not.
        """
        for name in {_engine_of(student) for student in students} - self._engines.keys():
            self._start(name, [student for student in students if _engine_of(student) == name], stop)
        for name, engine in self._engines.items():
            own = [student for student in students if _engine_of(student) == name]
            paths = {student.id: Path(student.bundle) / self._kinds[name].folder for student in own}
            engine.want(paths, {student.id: _golden(student) for student in own})
        for running in self._running.values():
            if running.done():
                running.result()

    async def ended(self) -> None:
        """Wait for all to end, after `stop`."""
        await asyncio.gather(*self._running.values())

    def _start(self, name: str, first: Sequence[Candidate], stop: asyncio.Event) -> None:
        kind = self._kinds[name]
        (self._settings.folder / "logs").mkdir(parents=True, exist_ok=True)
        engine = Engine(kind.settings(self._settings, first), partial(_note, kind.state), kind.command)
        self._engines[name] = engine
        self._running[name] = asyncio.create_task(engine.run(stop))

    def _statuses(self) -> list[EngineStatus]:
        return [engine.status() for engine in self._engines.values()]


def _engine_of(student: Candidate) -> str:
    name = str(student.card.get("engine", VLLM))
    if name not in (VLLM, SMALL):
        raise BadInput(f"student {student.id} wants engine {name!r}, and there are {VLLM} and {SMALL}: distill again")
    return name


def vllm_settings(settings: Settings, base: Path) -> EngineSettings:
    """How vLLM is set up for the model in `base`."""
    options = settings.serving
    return EngineSettings(
        base=base,
        port=options.port,
        dtype=compute_dtype() if options.device == "cpu" else "bfloat16",
        max_model_len=options.max_model_len,
        kv_cache_gb=options.kv_cache_gb,
        extra_args=options.args,
        max_lora_rank=options.max_lora_rank,
        device="gpu" if options.device == "gpu" else "cpu",
        log=settings.folder / "logs" / "engine.log",
    )


def _vllm_settings(settings: Settings, first: Sequence[Candidate]) -> EngineSettings:
    return vllm_settings(settings, Path(first[0].card["base"]))


def _small_settings(settings: Settings, first: Sequence[Candidate]) -> EngineSettings:
    """Each student reads its own encoder, and the server may load any of those it is told of."""
    encoders = list(dict.fromkeys(str(student.card["base"]) for student in first))
    more = [part for encoder in encoders[1:] for part in ("--encoder", encoder)]
    return EngineSettings(
        base=Path(encoders[0]),
        port=settings.serving.small_port,
        dtype="float32",
        extra_args=tuple(more),
        log=settings.folder / "logs" / "small.log",
    )


def _golden(student: Candidate) -> list[Golden]:
    return [Golden(item["messages"], item["text"]) for item in student.card["golden"]]


def _note(path: Path, status: EngineStatus) -> None:
    said: Mapping[str, object] = {**asdict(status), "ready": sorted(status.ready), "failed": dict(status.failed)}
    put(path, json.dumps(said))
