"""Owns one training run: an adapter or all weights of the base model, completion-only loss, several rows packed a step.

Knows nothing of exchanges, templates or evaluation: it sees token ids. Rows of a step, on a CPU those of
each of its lanes (`distiller.lanes`), are laid end to end in one sequence and attention runs row by row, so a row
cannot see its neighbours, nothing is padded, and no mask is ever built (on a CPU that made short rows 1.4 times faster
than a block-diagonal mask). Only positions that predict a completion token reach the vocabulary head.

Called in each process of `accelerate launch` or torchrun, the processes share the rows of every step, and their
averaged gradient is that of one process; the first of them writes. Refused where training diverges.

Start the process with OMP_WAIT_POLICY=PASSIVE in its environment (it is read when torch loads): threads that spin at
barriers stall for minutes as soon as anything else is busy on the machine.
"""

import random
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from distiller.base import base_identity, compute_dtype
from distiller.checkpoints import Checkpoints, Journal, Progress, claim, digest_of, latest
from distiller.completion_trainer import CompletionTrainer
from distiller.early_stop import EarlyStop, KeepBest, best_step, exhausted
from distiller.examples import Encoded, completion_tokens, pack_in_halves
from distiller.weights import all_weights, gone_on_from, load_for_training, save_adapter, save_model, with_adapter
from proxy.errors import BadInput


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. A step holds rows of `tokens_per_step` tokens in sum, a row at most `max_tokens`.

    `method` is "lora" (an adapter of `rank` and `alpha`) or "full" (all weights; a tenth of the learning rate suits
    it). `layers` is how many of the uppermost layers learn (None: all); the backward pass stops below them, so half the
    layers train about 1.4 times as fast. `threads` are those of one process, and on a CPU the lanes that share the rows
    of a step. `alpha_hard` is the weight of the text where a soft target is known too. `steps` is how many there are,
    however many epochs that takes (0: `epochs` say).
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
    method: str = "lora"
    alpha_hard: float = 0.5
    steps: int = 0

    def __post_init__(self) -> None:
        """Raises BadInput for settings that cannot work."""
        if self.rank < 8 or self.rank & (self.rank - 1):
            raise BadInput(f"rank must be a power of two from 8 up, which is what vLLM serves; it is {self.rank}")
        if self.method not in ("lora", "full"):
            raise BadInput(f'method must be "lora" (an adapter) or "full" (all weights), not {self.method!r}')
        if self.max_tokens > self.tokens_per_step:
            raise BadInput("max_tokens must not exceed tokens_per_step: a row has to fit into a step")
        if not 0 <= self.alpha_hard <= 1:
            raise BadInput(f"alpha_hard is a share, from 0 to 1; it is {self.alpha_hard}")
        if self.steps < 0:
            raise BadInput(f"steps is a number of steps, or 0 for as many as the epochs take; it is {self.steps}")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training run did; `losses` in nats per completion token, one per step; `tokens` counts prompts too.

    `seconds` and tokens per second include evaluations, but no work that a crash undid. `peak_mb` is the most memory
    (MB) this process ever held, on a GPU the most allocated there. `scores` are (step, score) of the evaluations, and
    `kept_step` is the step whose state was saved.
    """

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    losses: tuple[float, ...]
    completion_tokens: int
    tokens_per_second: float
    completion_tokens_per_second: float
    peak_mb: float
    kept_step: int
    scores: tuple[tuple[int, float], ...]


def train(
    base: Path,
    examples: Sequence[Encoded],
    settings: TrainSettings,
    out: Path,
    on_progress: Progress,
    *,
    checkpoints: Checkpoints | None = None,
    early_stop: EarlyStop | None = None,
    init: Path | None = None,
) -> Trained:
    """Trains on `examples` and saves adapter or model to `out`; the same input gives the same bytes, crash or not.

    With `init` the adapter goes on from the one in that folder, which must be of the same shape, instead of from zero.
    `on_progress(step, steps, loss)` is called once per step, counted from 1, on the first process. With `checkpoints` a
    run that was killed goes on where it was when it is started again; they are removed once it is through. Raises
    BadInput where there is nothing to learn from, or a row is longer than `settings.max_tokens`.
    """
    schedule = plan([len(example.input_ids) for example in examples], settings)
    steps = [[examples[index] for index in step] for step in schedule]
    arguments = training_arguments(settings, len(steps), out, checkpoints.every if checkpoints else None)
    with _workspace(checkpoints, out, lambda: _digest(base, examples, settings, early_stop, arguments, init)) as work:
        arguments.output_dir = str(work)
        model = learning_model(base, settings, init)
        save: Callable[[Path], None] = partial(save_weights, model, base, settings)
        journal = Journal(latest(work))
        record = partial(journal.record, len(steps), on_progress)
        trainer = CompletionTrainer(model, arguments, steps, record, settings.alpha_hard, settings.threads)
        trainer.add_callback(journal)
        if early_stop:
            best = KeepBest(early_stop, len(steps) // settings.epochs, save, work, journal.scores)
            trainer.add_callback(best)  # after the journal: what is beaten goes once a checkpoint is whole
            save = best.copy
        if not (early_stop and exhausted(journal.scores, early_stop.patience)):
            trainer.train(resume_from_checkpoint=journal.checkpoint)
        if trainer.is_world_process_zero():
            save(out)
        trainer.accelerator.wait_for_everyone()
    return _trained(steps, journal)


def plan(lengths: Sequence[int], settings: TrainSettings) -> list[list[int]]:
    """All steps, each a list of row indices. Every epoch groups and orders the rows anew, by the seed."""
    if not lengths:
        raise BadInput("there are no examples to train on")
    if max(lengths) > settings.max_tokens:
        raise BadInput(f"a row has {max(lengths)} tokens, over max_tokens = {settings.max_tokens}: raise it or drop it")
    shuffler = random.Random(settings.seed)
    steps: list[list[int]] = []
    epoch = 0
    while len(steps) < settings.steps if settings.steps else epoch < settings.epochs:
        epoch += 1
        order = shuffler.sample(range(len(lengths)), len(lengths))
        groups = pack_in_halves([lengths[index] for index in order], settings.tokens_per_step)
        shuffler.shuffle(groups)
        steps += [[order[place] for place in group] for group in groups]
    return steps[: settings.steps or None]


def training_arguments(settings: TrainSettings, steps: int, folder: Path, every: int | None) -> TrainingArguments:
    """How Trainer runs `steps` steps; with `every` it writes a checkpoint to `folder` after each so many."""
    gpu = torch.cuda.is_available()
    bf16 = compute_dtype() == "bfloat16"
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        num_train_epochs=1,  # the schedule already holds every epoch
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.0,
        optim="adamw_torch_fused",
        seed=settings.seed,
        use_cpu=not gpu,
        # An adapter's base already computes in bfloat16; weights that learn are float32 (`all_weights`).
        bf16=bf16 and (gpu or settings.method == "full"),
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        save_strategy="no" if every is None else "steps",
        save_steps=every or steps,
        save_total_limit=2,  # the newest may be unfinished
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def learning_model(base: Path, settings: TrainSettings, init: Path | None = None) -> Any:
    """The base with what is to learn, from the settings' seed, or an adapter as it is in the folder `init`."""
    torch.set_num_threads(settings.threads)
    set_seed(settings.seed)
    model = load_for_training(base)
    if settings.method == "full":
        return all_weights(model, settings.layers)
    fresh = with_adapter(model, settings.rank, settings.alpha, settings.layers)
    return fresh if init is None else gone_on_from(fresh, init)


def save_weights(model: Any, base: Path, settings: TrainSettings, folder: Path) -> None:
    """Writes what has learned: an adapter, or a whole model."""
    if settings.method == "full":
        save_model(model, base, folder)
    else:
        save_adapter(model, base.name, folder)


def peak_mb() -> float:
    """The most memory this process ever held, in MB; on a GPU the most that was allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


@contextmanager
def _workspace(checkpoints: Checkpoints | None, out: Path, digest: Callable[[], str]) -> Iterator[Path]:
    """A folder for checkpoints and scored states: of the run itself where it may have to go on, else a passing one."""
    if checkpoints is None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".training-", dir=out.parent) as passing:
            yield Path(passing)
        return
    state = PartialState()
    with state.main_process_first():
        own = claim(checkpoints, digest())
    yield own
    if state.is_main_process:
        shutil.rmtree(own)


def _digest(
    base: Path,
    examples: Sequence[Encoded],
    settings: TrainSettings,
    early_stop: EarlyStop | None,
    arguments: TrainingArguments,
    init: Path | None,
) -> str:
    rule = [early_stop.patience, early_stop.every] if early_stop else None
    parts = [base_identity(base), asdict(settings), rule, arguments.world_size]
    return digest_of([*parts, *([base_identity(init)] if init else []), *map(asdict, examples)])


def _trained(steps: Sequence[Sequence[Encoded]], journal: Journal) -> Trained:
    done = [row for step in steps[: len(journal.losses)] for row in step]
    tokens, completions = sum(len(row.input_ids) for row in done), completion_tokens(done)
    seconds = journal.seconds
    return Trained(
        steps=len(journal.losses),
        tokens=tokens,
        seconds=seconds,
        first_loss=journal.losses[0],
        last_loss=journal.losses[-1],
        losses=tuple(journal.losses),
        completion_tokens=completions,
        tokens_per_second=tokens / seconds,
        completion_tokens_per_second=completions / seconds,
        peak_mb=peak_mb(),
        kept_step=best_step(journal.scores) if journal.scores else len(journal.losses),
        scores=tuple(journal.scores),
    )
