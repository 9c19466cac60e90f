"""Owns when training stops early and which state is kept: by a score of the task, higher is better.

Knows nothing of rows or losses. A state is written to a folder as it would be served, scored there, and kept while no
later one beats it. The rows it is scored on must be neither trained on nor those of the holdout.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from proxy.errors import BadInput

Scores = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """`score` is given the folder of an adapter or model, and asked every `every` steps (0: at the end of each epoch).

    Training stops once `patience` evaluations in a row did not beat the best.
    """

    score: Callable[[Path], float]
    patience: int = 2
    every: int = 0

    def __post_init__(self) -> None:
        """Raises BadInput for what cannot work."""
        if self.patience < 1 or self.every < 0:
            raise BadInput("patience must be at least 1 evaluation, and every 0 (each epoch) or more steps")


def best_step(scores: Scores) -> int:
    """The step whose score no other beats, the earliest of equals; a score that is no number beats nothing."""
    return max(scores, key=lambda one: (-math.inf if math.isnan(one[1]) else one[1], -one[0]))[0]


def exhausted(scores: Scores, patience: int) -> bool:
    """Whether the last `patience` evaluations did not beat what came before."""
    return bool(scores) and sum(step > best_step(scores) for step, _ in scores) >= patience


class KeepBest(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Scores states while training goes on; `scores` grows, and `folder` holds the best as `kept-<step>`."""

    def __init__(
        self, stop: EarlyStop, epoch: int, save: Callable[[Path], None], folder: Path, scores: list[tuple[int, float]]
    ) -> None:
        """`epoch`: its steps; `save` writes the state of the moment; `scores`: so far, in a run gone on with."""
        self.stop, self.every, self.save, self.folder, self.scores = stop, stop.every or epoch, save, folder, scores

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Scores where it is time to, on the first process; all hear the result."""
        step = state.global_step
        if step % self.every and step < state.max_steps:
            return
        heard = [self._score(step) if state.is_world_process_zero else math.nan]
        broadcast_object_list(heard)
        self.scores.append((step, heard[0]))
        control.should_training_stop |= exhausted(self.scores, self.stop.patience)
        if args.save_strategy == "no":
            self._drop_beaten()
        else:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Only now no checkpoint remembers an earlier best."""
        if state.is_world_process_zero and self.scores:
            self._drop_beaten()

    def copy(self, target: Path) -> None:
        """Writes the best state."""
        shutil.copytree(self._kept(), target, dirs_exist_ok=True)

    def _kept(self) -> Path:
        return self.folder / f"kept-{best_step(self.scores)}"

    def _score(self, step: int) -> float:
        target = self.folder / f"kept-{step}"
        shutil.rmtree(target, ignore_errors=True)
        self.save(target)
        return float(self.stop.score(target))

    def _drop_beaten(self) -> None:
        for path in self.folder.glob("kept-*"):
            if path != self._kept():
                shutil.rmtree(path, ignore_errors=True)
