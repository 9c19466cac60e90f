"""Owns the training of one adapter: LoRA on the base model, completion-only loss, several rows packed into each step.

Knows nothing of exchanges, templates or evaluation: it sees token ids. Rows of a step are laid end to end in one
sequence and attention runs row by row, so a row cannot see its neighbours, nothing is padded, and no mask is ever built
(on a CPU that made short rows 1.4 times faster than a block-diagonal mask). Only positions that predict a completion
token reach the vocabulary head.

Start the process with OMP_WAIT_POLICY=PASSIVE in its environment (it is read when torch loads): threads that spin at
barriers stall for minutes as soon as anything else is busy on the machine.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, PrinterCallback, Trainer, TrainingArguments, set_seed

from distiller.base import compute_dtype, load_model
from distiller.examples import Encoded, pack
from proxy.errors import BadInput

ATTENTION = "row_by_row"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. A step holds rows of `tokens_per_step` tokens in sum, a row at most `max_tokens`.

    `layers` is how many of the uppermost layers learn (None: all); the backward pass stops below them, so half the
    layers train about 1.4 times as fast. `steps` ends the training sooner than `epochs` do (0: it does not).
    """

    epochs: int = 3
    learning_rate: float = 5e-4
    rank: int = 16
    alpha: int = 32
    tokens_per_step: int = 512
    max_tokens: int = 512
    seed: int = 0
    threads: int = 2
    layers: int | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        """Raises BadInput for settings that cannot work."""
        if self.rank < 8 or self.rank & (self.rank - 1):
            raise BadInput(f"rank must be a power of two from 8 up, which is what vLLM serves; it is {self.rank}")
        if self.max_tokens > self.tokens_per_step:
            raise BadInput("max_tokens must not exceed tokens_per_step: a row has to fit into a step")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training run did; `losses` in nats per completion token, one per step; `tokens` counts prompts too."""

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    losses: tuple[float, ...]


Progress = Callable[[int, int, float], None]


def train(
    base: Path, examples: Sequence[Encoded], settings: TrainSettings, adapter_out: Path, on_progress: Progress
) -> Trained:
    """Trains an adapter for `base` and saves it to `adapter_out`; the same input gives the same adapter.

    `on_progress(step, steps, loss)` is called once per step, counted from 1. Raises BadInput where there is nothing to
    learn from, or a row is longer than `settings.max_tokens`.
    """
    schedule = plan([len(example.input_ids) for example in examples], settings)
    torch.set_num_threads(settings.threads)
    set_seed(settings.seed)
    model = with_adapter(load_for_training(base), settings)
    losses: list[float] = []

    def record(loss: float) -> None:
        losses.append(loss)
        on_progress(len(losses), len(schedule), loss)

    started = time.perf_counter()
    steps = [[examples[index] for index in step] for step in schedule]
    CompletionTrainer(model, _arguments(settings, len(steps), adapter_out), steps, record).train()
    seconds = time.perf_counter() - started
    save_adapter(model, base.name, adapter_out)
    tokens = sum(len(row.input_ids) for step in steps for row in step)
    return Trained(len(losses), tokens, seconds, losses[0], losses[-1], tuple(losses))


def plan(lengths: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """All steps of all epochs, each a list of row indices. Every epoch groups and orders the rows anew, by the seed."""
    if not lengths:
        raise BadInput("there are no examples to train on")
    if max(lengths) > settings.max_tokens:
        raise BadInput(f"a row has {max(lengths)} tokens, over max_tokens = {settings.max_tokens}: raise it or drop it")
    shuffler = random.Random(settings.seed)
    steps: list[list[int]] = []
    for _ in range(settings.epochs):
        order = shuffler.sample(range(len(lengths)), len(lengths))
        groups = pack([lengths[index] for index in order], settings.tokens_per_step)
        shuffler.shuffle(groups)
        steps += [[order[place] for place in group] for group in groups]
    return steps[: settings.steps or None]


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
    With the `usual_weight` of all steps, `weights` say what each target counts.
    """
    ids: list[int] = []
    positions: list[int] = []
    keep: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row in rows:
        length = len(row.input_ids)
        keep += range(len(ids) + row.prompt_length - 1, len(ids) + length - 1)
        targets += row.input_ids[row.prompt_length :]
        weights += [row.weight] * (length - row.prompt_length)
        positions += range(length)
        ids += row.input_ids
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "row_lengths": [len(row.input_ids) for row in rows],
        "logits_to_keep": torch.tensor(keep),
        "targets": torch.tensor(targets),
    } | ({} if usual is None else {"weights": torch.tensor(weights) / usual})


def load_for_training(base: Path) -> Any:
    """The base model with attention that keeps packed rows apart."""
    AttentionInterface.register(ATTENTION, attend_row_by_row)
    return load_model(base, attention=ATTENTION)


def with_adapter(model: Any, settings: TrainSettings) -> Any:
    """The model with a fresh adapter on every linear layer but the vocabulary head; everything else is frozen."""
    depth = model.config.num_hidden_layers
    top = depth if settings.layers is None else min(settings.layers, depth)
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=sorted(linear),
        layers_to_transform=list(range(depth - top, depth)),
    )
    return get_peft_model(model, config)


def attend_row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: list[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row. In: `(1, heads, tokens, head size)`, out: `(1, tokens, heads, head size)`.

    transformers builds no mask for an attention it does not know, so there is none to ignore.
    """
    if sliding_window is not None and max(row_lengths) > sliding_window:
        raise BadInput(f"rows are longer than the base model's attention window of {sliding_window}: lower max_tokens")
    rows = zip(*(torch.split(tensor, row_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in rows]
    return torch.cat(out, dim=2).transpose(1, 2), None


def completion_loss(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Mean cross-entropy (nats) over the completion tokens of one collated step, or its sum with their `weights`."""
    seen = {name: value for name, value in inputs.items() if name not in ("targets", "weights")}
    logits = model(**seen, use_cache=False).logits[0]
    if "weights" not in inputs:
        return F.cross_entropy(logits.float(), inputs["targets"])
    each = F.cross_entropy(logits.float(), inputs["targets"], reduction="none")
    weights: torch.Tensor = inputs["weights"]
    return (each * weights).sum()


def save_adapter(model: Any, base_name: str, folder: Path) -> None:
    """Writes weights and configuration; equal adapters give equal bytes, and no path of this machine is in them."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's empty model card; a student's own card is written elsewhere
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": base_name, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


class CompletionTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """transformers' Trainer over ready-made steps, in their order, with `completion_loss`."""

    def __init__(
        self, model: Any, args: TrainingArguments, steps: list[list[Encoded]], on_loss: Callable[[float], None]
    ) -> None:
        """Each of `steps` is one item of the data set, so that Trainer's batch size is 1."""
        collator = partial(_collate_item, usual=usual_weight(steps))
        super().__init__(model, args, train_dataset=steps, data_collator=collator)
        self.remove_callback(PrinterCallback)
        self.on_loss = on_loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *_: object, **__: object) -> torch.Tensor:
        """The loss of one step."""
        return completion_loss(model, inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass, reported."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.on_loss(float(loss))
        return loss


def _collate_item(items: Sequence[Sequence[Encoded]], usual: float | None) -> dict[str, Any]:
    return collate(items[0], usual)


def _arguments(settings: TrainSettings, steps: int, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=1,  # the schedule already holds every epoch
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.0,
        optim="adamw_torch",
        seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and compute_dtype() == "bfloat16",
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
