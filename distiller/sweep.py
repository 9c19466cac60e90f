"""Owns the choice of a learning rate: short runs from one start, compared on rows set aside from the training rows.

Knows nothing of exchanges or scores, and never sees the holdout.
"""

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distiller.completion_trainer import CompletionTrainer, collate, completion_loss
from distiller.examples import Encoded, completion_tokens, pack
from distiller.train import TrainSettings, learning_model, plan, training_arguments
from proxy.errors import BadInput, Refused

SHARE = 5
MOST = 200


@dataclass(frozen=True, slots=True)
class Sweep:
    """The rate that was chosen, and the validation loss each candidate came to (nats per completion token)."""

    chosen: float
    losses: Mapping[float, float]


def set_aside(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of `count` rows to train on and to validate with: a fifth, at most 200; the same seed, the same split."""
    if count < SHARE:
        raise BadInput(f"{count} rows are too few to set a fifth aside: give at least {SHARE}")
    aside = set(random.Random(seed).sample(range(count), min(count // SHARE, MOST)))
    return [index for index in range(count) if index not in aside], sorted(aside)


def choose_learning_rate(
    base: Path, examples: Sequence[Encoded], settings: TrainSettings, candidates: Sequence[float], steps: int
) -> Sweep:
    """Trains `steps` steps at each of `candidates` in turn and takes the rate with the lowest validation loss.

    Each run warms up and cools down within its steps. A run that diverges loses; of equals the smaller rate wins.
    Raises BadInput without candidates, steps or enough rows, and where every candidate diverges.
    """
    if not candidates or steps < 1:
        raise BadInput("give at least one learning rate and one step to choose a learning rate")
    learned, aside = ([examples[index] for index in part] for part in set_aside(len(examples), settings.seed))
    losses = {rate: _tried(base, learned, aside, replace(settings, learning_rate=rate), steps) for rate in candidates}
    chosen = min(losses, key=lambda rate: (losses[rate], rate))
    if math.isinf(losses[chosen]):
        raise BadInput("training diverges at every candidate: give smaller learning rates")
    return Sweep(chosen, losses)


@torch.no_grad()
def validation_loss(model: Any, rows: Sequence[Encoded], tokens_per_step: int) -> float:
    """Mean cross-entropy of `model` over the completion tokens of `rows`, in nats; infinite where it is no number."""
    total = 0.0
    for group in pack([len(row.input_ids) for row in rows], tokens_per_step):
        packed = [rows[index] for index in group]
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in collate(packed).items()
            if name != "soft"  # The text alone is what rates are compared on.
        }
        total += float(completion_loss(model, inputs, alpha_hard=1.0)) * completion_tokens(packed)
    mean = total / completion_tokens(rows)
    return mean if math.isfinite(mean) else math.inf


def _tried(
    base: Path, learned: Sequence[Encoded], aside: Sequence[Encoded], settings: TrainSettings, steps: int
) -> float:
    lengths = [len(row.input_ids) for row in learned]
    epochs = math.ceil(steps / len(plan(lengths, replace(settings, epochs=1))))
    schedule = [[learned[index] for index in step] for step in plan(lengths, replace(settings, epochs=epochs))[:steps]]
    model = learning_model(base, settings)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(settings, steps, Path(folder), None)
        trainer = CompletionTrainer(model, arguments, schedule, lambda _: None, settings.alpha_hard, settings.threads)
        try:
            trainer.train()
        except Refused:  # It diverged.
            return math.inf
    return validation_loss(model.eval(), aside, settings.tokens_per_step)
