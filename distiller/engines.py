"""Owns which engines run for the students there are: vLLM for adapters, one a base, the small server for the others.

Each starts with the first student that needs it, and runs until the end. Must not know the log.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from distiller.base import compute_dtype
from distiller.serving import Command, Engine, EngineSettings, EngineStatus, Golden, engine_command, small_command
from distiller.settings import Settings
from distiller.signature import trust
from proxy.errors import BadInput, Refused
from proxy.files import put
from router.registry import Candidate

_log = logging.getLogger("stillroom.engines")

VLLM, SMALL = "vllm", "small"  # as a student's card names its engine; one without a name is vLLM's


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of engine: how it is set up for its first students, where they lie in a bundle, what starts it."""

    settings: Callable[[Settings, Sequence[Candidate]], EngineSettings]
    folder: str
    command: Callable[[EngineSettings], Command]


class _Needed(NamedTuple):
    """What a student is served by: adapters share an engine where they grew from the same base."""

    kind: str
    base: str


class Engines:
    """The engines that run. Everything happens on the loop that `want` is called on."""

    def __init__(self, settings: Settings) -> None:
        """Nothing starts before a student is wanted. BadInput where the key that students need cannot be read."""
        self._settings = settings
        self._trust = trust(settings.signing)
        self._problems: dict[str, str] = {}  # of every student looked at; empty where there is none
        self._kinds = {
            VLLM: _Kind(_vllm_settings, "adapter", engine_command),
            SMALL: _Kind(_small_settings, "small", small_command),
        }
        self._engines: dict[_Needed, Engine] = {}
        self._running: dict[_Needed, asyncio.Task[None]] = {}
        for place in settings.more_engine_states:  # Of a run before, whose bases may never be wanted again.
            place.unlink(missing_ok=True)

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

        None that is not signed as `[signing]` wants it is served.
        Raises what ended an engine for good, and BadInput for a student that wants an engine there is not.
        """
        students = [student for student in students if self._trusted(student)]
        needed = [_needed(student) for student in students]
        for one in (one for one in dict.fromkeys(needed) if one not in self._engines):
            self._start(one, _of(one, needed, students), stop)
        for one, engine in self._engines.items():
            own = _of(one, needed, students)
            paths = {student.id: Path(student.bundle) / self._kinds[one.kind].folder for student in own}
            engine.want(paths, {student.id: _golden(student) for student in own})
        for running in self._running.values():
            if running.done():
                running.result()

    async def ended(self) -> None:
        """Wait for all to end, after `stop`."""
        await asyncio.gather(*self._running.values())

    def _start(self, one: _Needed, first: Sequence[Candidate], stop: asyncio.Event) -> None:
        kind = self._kinds[one.kind]
        (self._settings.folder / "logs").mkdir(parents=True, exist_ok=True)
        wanted, state = kind.settings(self._settings, first), self._settings.small_state
        if one.kind == VLLM:
            wanted, state = self._apart(wanted)
        engine = Engine(wanted, partial(_note, state, self._problems), kind.command)
        self._engines[one] = engine
        self._running[one] = asyncio.create_task(engine.run(stop))

    def _apart(self, wanted: EngineSettings) -> tuple[EngineSettings, Path]:
        """The first vLLM has the configured port; each that follows has a port, a log and a state of its own."""
        before = sum(one.kind == VLLM for one in self._engines)
        if not before:
            return wanted, self._settings.engine_state
        serving = self._settings.serving
        port = [port for port in range(serving.port, serving.port + before + 2) if port != serving.small_port][before]
        name = f"engine-{before + 1}"
        state = self._settings.engine_state.with_stem(name)
        return replace(wanted, port=port, log=wanted.log.with_stem(name)), state

    def _trusted(self, student: Candidate) -> bool:
        """Looked at once: a bundle never changes, and the engine reads it soon after."""
        if student.id not in self._problems:
            try:
                self._trust(Path(student.bundle))
                self._problems[student.id] = ""
            except (BadInput, Refused) as error:
                self._problems[student.id] = str(error)
                _log.error("%s is not served: %s", student.id, error)
        return not self._problems[student.id]

    def _statuses(self) -> list[EngineStatus]:
        return [engine.status() for engine in self._engines.values()]


def _needed(student: Candidate) -> _Needed:
    name = str(student.card.get("engine", VLLM))
    if name not in (VLLM, SMALL):
        raise BadInput(f"student {student.id} wants engine {name!r}, and there are {VLLM} and {SMALL}: distill again")
    return _Needed(name, str(student.card["base"]) if name == VLLM else "")


def _of(one: _Needed, needed: Sequence[_Needed], students: Sequence[Candidate]) -> list[Candidate]:
    return [student for student, needs in zip(students, needed, strict=True) if needs == one]


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


def _note(path: Path, problems: Mapping[str, str], status: EngineStatus) -> None:
    failed = {**{name: why for name, why in problems.items() if why}, **status.failed}
    said: Mapping[str, object] = {**asdict(status), "ready": sorted(status.ready), "failed": failed}
    put(path, json.dumps(said))
