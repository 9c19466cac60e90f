"""Owns how llama.cpp is asked for the proof of an exported file: through its door, as `stillroom edge` serves it.

Must not know how the file was made, nor what is asked. llama.cpp runs in a process of its own, without torch, so that
its memory is its own too.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distiller.edge import HOST, Running
from distiller.proof import Asking, Messages, Reply, post
from proxy.errors import Unavailable

_START_S = 120.0
_HEALTH_S = 60.0


@contextlib.contextmanager
def llama(folder: Path, running: Running) -> Iterator[Asking]:
    """llama.cpp with the file in `folder`; Unavailable where it does not run, with what it said last."""
    log = folder / "engine.log"
    command = [sys.executable, "-m", "distiller.edge", str(folder), "0", *(str(n) for n in asdict(running).values())]
    with log.open("w+b") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            url = _door(child, log)
            with urllib.request.urlopen(f"{url}/health", timeout=_HEALTH_S) as answer:
                engine = json.load(answer)["engine"]
            yield Asking(
                lambda messages: _ask(url, messages), lambda messages: _read(engine, messages), lambda: _peak(child.pid)
            )
        finally:
            child.terminate()
            child.wait()
    log.unlink()


def _post(url: str, body: dict[str, Any]) -> Any:
    return post(url, body, "llama.cpp", "raise edge.context if a prompt is too long")


def _ask(url: str, messages: Messages) -> Reply:
    said = _post(f"{url}/v1/chat/completions", {"messages": messages, "logprobs": True, "top_logprobs": 1})
    choice, timings = said["choices"][0], said["timings"]
    return Reply(
        text=choice["message"]["content"] or "",
        finished=choice["finish_reason"] == "stop",
        # llama.cpp tells none of a token that ends within a character, and nothing where there is no other.
        logprobs=tuple(token["logprob"] for token in (choice.get("logprobs") or {"content": ()})["content"]),
        prompt_tokens=timings["prompt_n"],
        prompt_ms=timings["prompt_ms"],
        tokens=timings["predicted_n"],
        ms=timings["predicted_ms"],
    )


def _read(engine: str, messages: Messages) -> list[int]:
    prompt = _post(f"{engine}/apply-template", {"messages": messages})["prompt"]
    told = {"content": prompt, "add_special": True, "parse_special": True}
    return list(_post(f"{engine}/tokenize", told)["tokens"])


def _peak(pid: int) -> int | None:
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else None


def _door(child: subprocess.Popen[bytes], log: Path) -> str:
    """Where the child says that it answers; Unavailable with its last line when it ends before, or never does."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and child.poll() is None:
        if found := re.search(rf"http://{HOST}:\d+(?=/v1)", log.read_text(errors="replace")):
            return found[0]
        time.sleep(0.02)
    lines = log.read_text(errors="replace").splitlines() or ["it wrote nothing"]
    raise Unavailable(f"llama.cpp does not start: {lines[-1].removeprefix('stillroom: ')}")
