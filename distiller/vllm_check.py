"""Owns how vLLM is asked for the proof of an exported folder: as a student of its own, without adapters.

Must not know how the folder was made, nor what is asked. Here the engine lives once: what ends it, ends the proof.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from distiller.engines import vllm_settings
from distiller.proof import Asking, Messages, Reply, post
from distiller.serving import Command, Engine, EngineSettings, EngineStatus, whole_command
from distiller.settings import Settings
from proxy.errors import Unavailable
from proxy.listening import free_port
from router.prompt import student_messages


@contextlib.contextmanager
def vllm(
    folder: Path,
    settings: Settings,
    card: Mapping[str, Any],
    command: Callable[[EngineSettings], Command] = whole_command,
) -> Iterator[Asking]:
    """vLLM with the model in `folder`, asked as the student with this card is; Unavailable where it does not serve it.

    It is set up by `[serving]`, on a port that is free, and logs to logs/export.log.
    """
    log = settings.folder / "logs" / "export.log"
    with _alive(replace(vllm_settings(settings, folder), port=free_port(), log=log), command) as engine:
        url = engine.status().url
        yield Asking(partial(_ask, url, card), partial(_read, url), lambda: _peak(engine.group()))


@contextlib.contextmanager
def _alive(settings: EngineSettings, command: Callable[[EngineSettings], Command]) -> Iterator[Engine]:
    """An engine that is up, on a loop in a thread of its own; Unavailable where it ends before."""
    up: Future[None] = Future()
    stop = asyncio.Event()

    def changed(status: EngineStatus) -> None:
        if status.state == "up" and not up.done():
            up.set_result(None)
        if status.state == "down":  # It is not started again.
            stop.set()

    def ended(_: Future[None]) -> None:
        if not up.done():
            up.set_exception(Unavailable(engine.status().reason))

    engine = Engine(settings, changed, command)
    with contextlib.closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as pool:
        life = pool.submit(loop.run_until_complete, engine.run(stop))
        life.add_done_callback(ended)
        try:
            up.result()
            yield engine
        finally:
            loop.call_soon_threadsafe(stop.set)
            life.result()


def _ask(url: str, card: Mapping[str, Any], messages: Messages) -> Reply:
    body = {
        "model": "base",
        "messages": student_messages(messages, frozenset(card["static"])),
        "temperature": 0,
        "max_tokens": card["max_tokens"],
        "logprobs": True,
    }
    said = _post(f"{url}/v1/chat/completions", body)
    choice, usage, measured = said["choices"][0], said["usage"], said["metrics"]
    return Reply(
        text=choice["message"]["content"] or "",
        finished=choice["finish_reason"] == "stop",
        logprobs=tuple(token["logprob"] for token in choice["logprobs"]["content"]),
        prompt_tokens=usage["prompt_tokens"],
        prompt_ms=measured["time_to_first_token_ms"],
        tokens=usage["completion_tokens"] - 1,  # The first is there when the prompt has been read.
        ms=measured["generation_time_ms"],
    )


def _read(url: str, messages: Messages) -> list[int]:
    return list(_post(f"{url}/tokenize", {"model": "base", "messages": messages})["tokens"])


def _post(url: str, body: Mapping[str, Any]) -> Any:
    return post(url, body, "vLLM", "raise serving.max_model_len if a prompt is too long")


def _peak(group: int | None) -> int | None:
    """The sum over the engine's processes, each at its largest: what they share is counted for each."""
    found = [_taken(folder) for folder in Path("/proc").glob("[0-9]*") if _group(folder) == group]
    return sum(found) or None


def _group(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:  # It has ended meanwhile.
        return None


def _taken(process: Path) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
