"""Owns how one step of ready rows becomes a loss and its gradient: collated, in lanes, in each of the processes.

Knows token ids, and neither where a model comes from nor when a run ends. A step is shared first among the processes,
then, on a CPU, among the lanes of a process; all their gradients are added in a fixed order, so that they are those of
the step as a whole, and the same bytes however fast a lane was.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import AutocastKwargs
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from distiller.base import shared_threads
from distiller.examples import Encoded, completion_tokens, share, split
from distiller.lanes import Lanes, lanes
from distiller.losses import hard_loss, mixed_loss, pad_soft
from distiller.projection import Target
from proxy.errors import Refused

# Each process has all weights, so that any thread may compute with them.
_WHOLE_WEIGHTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def usual_weight(steps: Sequence[Sequence[Encoded]]) -> float | None:
    """The mean over steps of the sum of their tokens' weights; None where all weigh 1: a step's loss is its mean then.

    Divided by its own sum, a step of light rows alone would count as much as any other.
    """
    rows = [row for step in steps for row in step]
    if all(row.weight == 1.0 for row in rows):
        return None
    return sum(row.weight * (len(row.input_ids) - row.prompt_length) for row in rows) / len(steps)


def collate(rows: Sequence[Encoded], usual: float | None = None) -> dict[str, Any]:
    """One step as model inputs: ids and restarting positions `(1, tokens)`, `row_lengths`, and what to predict where.

    `logits_to_keep` are the positions whose next token is a completion token, `targets` those tokens, in that order.
    `soft` is there only if a row of the step has soft targets. With the `usual_weight` of all steps, `weights` say what
    each target counts.
    """
    ids: list[int] = []
    positions: list[int] = []
    keep: list[int] = []
    targets: list[int] = []
    soft: list[Target | None] = []
    weights: list[float] = []
    for row in rows:
        length = len(row.input_ids)
        keep += range(len(ids) + row.prompt_length - 1, len(ids) + length - 1)
        targets += row.input_ids[row.prompt_length :]
        soft += row.soft or [None] * (length - row.prompt_length)
        weights += [row.weight] * (length - row.prompt_length)
        positions += range(length)
        ids += row.input_ids
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "row_lengths": [len(row.input_ids) for row in rows],
        "logits_to_keep": torch.tensor(keep),
        "targets": torch.tensor(targets),
    }
    if usual is not None:
        inputs["weights"] = torch.tensor(weights) / usual
    return inputs | {"soft": pad_soft(soft)} if any(soft) else inputs


def completion_loss(model: torch.nn.Module, inputs: dict[str, Any], alpha_hard: float) -> torch.Tensor:
    """Loss (nats) over the completion tokens of one collated step: cross-entropy, mixed where there is soft.

    The mean, or with `weights` the sum of the tokens' losses, each times its weight.
    """
    seen = {name: value for name, value in inputs.items() if name not in ("targets", "soft", "weights")}
    logits, weights = model(**seen, use_cache=False).logits[0], inputs.get("weights")
    if "soft" not in inputs:
        return hard_loss(logits, inputs["targets"], weights)
    return mixed_loss(logits, inputs["targets"], inputs["soft"], alpha_hard, weights)


class CompletionTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """transformers' Trainer over ready-made steps, in their order, with `completion_loss`.

    Of several processes each computes its share of every step. Refused ends a training whose loss or gradient is no
    number any more.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        steps: list[list[Encoded]],
        on_loss: Callable[[float], None],
        alpha_hard: float,
        threads: int,
    ) -> None:
        """Each of `steps` is one item of the data set, so that Trainer's batch size is 1; `threads` are its lanes."""
        super().__init__(model, args, train_dataset=steps, data_collator=self._collate)
        # Weights that were narrowed are otherwise kept for the whole of a pass, which threads then share.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        self.usual = usual_weight(steps)
        self.remove_callback(PrinterCallback)
        self.on_loss = on_loss
        self.alpha_hard = alpha_hard
        whole = self.accelerator.distributed_type in _WHOLE_WEIGHTS
        self.threads = shared_threads(model.config, threads) if whole else 1
        self.lanes = Lanes(1)
        self.learning = [weight for weight in model.parameters() if weight.requires_grad]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own; the lanes are there as long as it takes."""
        with lanes(self.threads) as self.lanes:
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every step in its order on every process; Trainer's own would deal whole steps out instead."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate goes through all weights at every step, and nobody reads it."""
        return 0

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *_: object, **__: object) -> torch.Tensor:
        """The loss of part of a step, weighted so that the sum over lanes, and its mean over processes, is the step's.

        On one lane `inputs` are what `_collate` gives, and else one of its `parts`.
        """
        [part] = inputs.get("parts", [inputs])
        weight: float = part["weight"]
        seen = {name: value for name, value in part.items() if name != "weight"}
        return weight * completion_loss(model, seen, self.alpha_hard)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass, reported."""
        if self.lanes.count == 1:
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        else:
            loss = self._in_lanes(inputs["parts"])
        value = float(self.accelerator.reduce(loss.clone(), "mean"))
        self._refuse_unless_finite(value)
        self.on_loss(value)
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Trainer's own, of a gradient that is a number; and not through all layers again for the weights that learn.

        (A test notices should Trainer cease to call it.)
        """
        if self.lanes.count == 1:
            norm = super()._clip_grad_norm(model)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.learning, self.args.max_grad_norm)
        self._refuse_unless_finite(float(norm))
        return norm

    def _refuse_unless_finite(self, value: float) -> None:
        if not math.isfinite(value):
            raise Refused(
                f"training diverged at step {self.state.global_step + 1}: the loss or its gradient is no number any "
                "more; lower distiller.learning_rate"
            )

    def _in_lanes(self, parts: list[dict[str, Any]]) -> torch.Tensor:
        """The loss of this process's share; each weight's gradient is the mean over processes, as after a backward.

        Around any wrapper that shares gradients among processes: it expects one backward pass a step.
        """
        if not self.model.training:
            self.model.train()

        def one(part: dict[str, Any]) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            loss = self.compute_loss(self.model, part)
            return loss.detach(), torch.autograd.grad(loss, self.learning, materialize_grads=True)

        (loss, gradients), *others = self.lanes.each(one, parts)
        for further, more in others:
            loss = loss + further
            for gradient, added in zip(gradients, more, strict=True):
                gradient.add_(added)
        for weight, gradient in zip(self.learning, self._averaged(gradients), strict=True):
            weight.grad = gradient
        return loss

    def _averaged(self, gradients: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The mean over processes, sent as one piece."""
        if self.accelerator.num_processes == 1:
            return gradients
        flat = self.accelerator.reduce(torch.cat([one.flatten() for one in gradients]), "mean")
        pieces = flat.split([one.numel() for one in gradients])
        return [piece.view_as(one) for piece, one in zip(pieces, gradients, strict=True)]

    def _collate(self, items: list[list[Encoded]]) -> dict[str, Any]:
        rows, weight = share(items[0], self.args.process_index, self.args.world_size)
        parts = split(rows, self.lanes.count)
        if self.usual is not None and weight:  # The processes' mean of these sums is to be the sum over the step.
            weights = [float(self.args.world_size)] * len(parts)
        else:
            weights = [weight * completion_tokens(part) / completion_tokens(rows) for part in parts]
        return {"parts": [collate(p, self.usual) | {"weight": w} for p, w in zip(parts, weights, strict=True)]}
