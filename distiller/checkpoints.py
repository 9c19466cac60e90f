"""Owns what a training run keeps on disk to go on after a crash: which checkpoints are its own, and which are whole.

Knows nothing of models. transformers' Trainer writes weights, optimizer, schedule and random state into

FOLDER/run-<digest of the inputs>/checkpoint-<step>/

and `progress.json` is added last: a checkpoint without it was never finished, and is not gone on from.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from proxy.files import put

PROGRESS = "progress.json"
# Told the step (from 1), of how many, and its loss.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a run keeps its checkpoints, and after how many steps each. The folder may be shared by runs in turn."""

    folder: Path
    every: int = 50


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a run is: losses of its steps so far, (step, score) of its evaluations, seconds it took."""

    losses: tuple[float, ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0


class Journal(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """What a run has done so far, whatever process did it; goes into each checkpoint and declares it whole."""

    def __init__(self, saved: tuple[Path, Reached] | None) -> None:
        """Goes on from `saved`, where there is a checkpoint."""
        self.checkpoint: str | None = str(saved[0]) if saved else None
        reached = saved[1] if saved else Reached()
        self.losses, self.scores = list(reached.losses), list(reached.scores)
        self._started = time.perf_counter() - reached.seconds

    @property
    def seconds(self) -> float:
        """Since the start, without what a crash undid."""
        return time.perf_counter() - self._started

    def record(self, steps: int, on_progress: Progress, loss: float) -> None:
        """One more step; the first process reports it."""
        self.losses.append(loss)
        if PartialState().is_main_process:
            on_progress(len(self.losses), steps, loss)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Trainer has written a checkpoint, once all processes are here."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            reached = Reached(tuple(self.losses), tuple(self.scores), self.seconds)
            finish(Path(args.output_dir) / f"checkpoint-{state.global_step}", reached)


def digest_of(parts: Iterable[Any]) -> str:
    """SHA-256 (16 hex digits) over what a run is made from; each part as JSON, so that equal inputs give one value."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return total.hexdigest()[:16]


def claim(checkpoints: Checkpoints, digest: str) -> Path:
    """The run's own folder, made where there is none. Other runs' folders and unfinished checkpoints are removed."""
    own = checkpoints.folder / f"run-{digest}"
    own.mkdir(parents=True, exist_ok=True)
    for other in checkpoints.folder.glob("run-*"):
        if other != own:
            shutil.rmtree(other)
    for checkpoint in own.glob("checkpoint-*"):
        if not (checkpoint / PROGRESS).exists():
            shutil.rmtree(checkpoint)
    return own


def latest(own: Path) -> tuple[Path, Reached] | None:
    """The last finished checkpoint of a run's folder."""
    whole = [path for path in own.glob("checkpoint-*") if (path / PROGRESS).exists()]
    if not whole:
        return None
    last = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    kept = json.loads((last / PROGRESS).read_text())
    scores = tuple((step, score) for step, score in kept["scores"])
    return last, Reached(tuple(kept["losses"]), scores, kept["seconds"])


def finish(checkpoint: Path, progress: Reached) -> None:
    """Declares a checkpoint whole, once everything in it has reached the disk."""
    for path in checkpoint.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    kept = {"losses": progress.losses, "scores": progress.scores, "seconds": progress.seconds}
    put(checkpoint / PROGRESS, json.dumps(kept), 0o600)
