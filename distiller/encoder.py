"""Owns one kind of right-sized student: a small encoder, fine-tuned whole to choose classes and to tag copies.

Reads a prompt in one pass, some thousand times cheaper than a language model that writes. Must not know exchanges,
verdicts or servers: prompts and answers in, a folder out, and from a folder the answers to prompts.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, get_linear_schedule_with_warmup, set_seed

from distiller.encoder_net import Batch, Network, Reading, collate, load_encoder, read
from distiller.extraction import Form, Span, Targets, form_from, learn, write
from distiller.generate import Generated
from distiller.predict import Predict, Prompt, one_text, read_facts, write_facts
from distiller.tagging import OUTSIDE, likeliest, spans_of, tags_of
from proxy.errors import BadInput, Refused
from router.confidence import confidence

KIND = "encoder"
Progress = Callable[[int, int, float], None]
"""(step, steps, loss), counted from 1; the steps are fewer where training ends early."""

_DIGITS = 6  # of a kept log-probability, as in `distiller.generate`
_SORTED = 16  # batches whose rows are sorted by length together
_ANSWERED = 32  # rows answered at once
_PADDING_TAG = -100


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How to train: at most `epochs`, and at most `train_tokens` tokens in all, search for the epochs included.

    Where that is not enough to read all rows twice, once to search and once to train, the newest that fit are taken.
    """

    epochs: int = 20
    batch: int = 16
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    warmup: float = 0.1
    patience: int = 4
    holdout: float = 0.15
    max_tokens: int = 256
    train_tokens: int = 4_000_000
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        """Raises BadInput for settings that cannot work."""
        if min(self.epochs, self.batch, self.patience, self.threads) < 1 or self.max_tokens < 8:
            raise BadInput("epochs, batch, patience and threads must be 1 or more, max_tokens 8 or more")
        if not 0 < self.holdout < 1 or not 0 <= self.warmup < 1:
            raise BadInput("holdout must be between 0 and 1, warmup from 0 to below 1")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a training did; `exact` is the share of its own held-out rows answered exactly when choosing the epochs.

    `round_trip` is the share of the answers that the form makes again, losses are nats an answer.
    """

    rows: int
    dropped: Mapping[str, int]
    round_trip: float
    epochs: int
    exact: float
    steps: int
    seconds: float
    first_loss: float
    last_loss: float


@dataclass(frozen=True, slots=True)
class _Example:
    text: str
    reading: Reading
    targets: Targets
    tags: list[int]
    weight: float


def train_encoder(
    encoder: Path,
    rows: Sequence[tuple[Prompt, str]],
    folder: Path,
    settings: EncoderSettings,
    on_progress: Progress,
    weights: Sequence[float] | None = None,
) -> Facts:
    """Trains a student of (prompt, answer) rows from the encoder in a folder, and saves it to `folder`.

    `weights`, one a row, are how much each counts in the loss; None: all the same.

    Rows are in order of time. The number of epochs is the one at which most rows of an inner holdout were answered
    exactly; then it is trained on all rows. Same input and seed, same bytes. Refused where the answers have no fixed
    form (`extraction.learn`).
    """
    started = time.perf_counter()
    torch.set_num_threads(settings.threads)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    learned = learn([(one_text(prompt), answer) for prompt, answer in rows])
    examples, dropped = _examples(
        tokenizer, rows, learned.targets, len(learned.form.copied), settings.max_tokens, weights or [1.0] * len(rows)
    )
    fit = _newest(examples, settings.train_tokens // 2)
    if len(fit) < 2:
        raise Refused(
            f"no more than {len(fit)} row has copies within max_tokens = {settings.max_tokens} and fits into "
            f"distiller.encoder_tokens = {settings.train_tokens}"
        )
    dropped.update(learned.dropped, over_budget=len(examples) - len(fit))
    run = _Run(encoder, tokenizer, learned.form, settings, on_progress)
    epochs, exact = run.search(fit)
    network, losses = run.train(fit, epochs, lambda _: True)
    _save(folder, network, tokenizer, learned.form, settings)
    return Facts(
        rows=len(fit),
        dropped=dict(+dropped),
        round_trip=learned.round_trip,
        epochs=epochs,
        exact=exact,
        steps=len(losses),
        seconds=time.perf_counter() - started,
        first_loss=losses[0],
        last_loss=losses[-1],
    )


def load(folder: Path) -> Predict:
    """The student in a folder, as a function: the answers to prompts, in their order.

    An answer's `logprobs` has a number for each class, one for each copy, and one for all that is not copied (nats).
    It has not `finished` where there may be more to copy in what is past the student's `max_tokens`.
    """
    stored = read_facts(folder)
    try:
        form, most = form_from(stored["form"]), int(stored["max_tokens"])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = Network(AutoModel.from_config(AutoConfig.from_pretrained(folder)), form)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        text = f"{folder} holds an encoder that cannot be read ({type(error).__name__}): distill again"
        raise BadInput(text) from None
    network.eval()

    def predict(prompts: Sequence[Prompt]) -> list[Generated]:
        texts = [one_text(prompt) for prompt in prompts]
        return _answers(network, form, texts, [read(tokenizer, text, most) for text in texts], tokenizer.pad_token_id)

    return predict


def _examples(
    tokenizer: Any, rows: Sequence[tuple[Prompt, str]], targets: Sequence[Targets | None], fields: int, most: int,
    weights: Sequence[float],
) -> tuple[list[_Example], Counter[str]]:  # fmt: skip
    examples: list[_Example] = []
    dropped: Counter[str] = Counter()
    for (prompt, _), found, weight in zip(rows, targets, weights, strict=True):
        if found is None:
            continue
        text = one_text(prompt)
        reading = read(tokenizer, text, most)
        tags = tags_of(found.spans, reading.units, fields)
        if tags is None:
            dropped["not_whole_units"] += 1
        else:
            examples.append(_Example(text, reading, found, tags, weight))
    return examples, dropped


def _newest(examples: Sequence[_Example], most: int) -> Sequence[_Example]:
    """The last of them, with so many tokens in all at most."""
    read = accumulate(len(one.reading.ids) for one in reversed(examples))
    fit = sum(1 for _ in takewhile(lambda tokens: tokens <= most, read))
    return examples[len(examples) - fit :]


@dataclass(frozen=True, slots=True)
class _Run:
    """One training, of which the search is a part."""

    encoder: Path
    tokenizer: Any
    form: Form
    settings: EncoderSettings
    on_progress: Progress

    def search(self, examples: Sequence[_Example]) -> tuple[int, float]:
        """(the best number of epochs, the share of an inner holdout that was exact after them)."""
        order = list(range(len(examples)))
        random.Random(self.settings.seed).shuffle(order)
        held = max(1, int(self.settings.holdout * len(order)))
        part, rest = ([examples[index] for index in chosen] for chosen in (order[:held], order[held:]))
        wanted = [write(self.form, one.text, one.targets) for one in part]
        scores: list[tuple[float, float]] = []

        def watch(network: Network) -> bool:
            network.eval()
            texts, readings = [one.text for one in part], [one.reading for one in part]
            answers = _answers(network, self.form, texts, readings, self.tokenizer.pad_token_id)
            right = [answer.text == text for answer, text in zip(answers, wanted, strict=True)]
            sure = [
                answer.confidence if good else -answer.confidence for answer, good in zip(answers, right, strict=True)
            ]
            scores.append((sum(right) / held, sum(sure) / held))
            return len(scores) - scores.index(max(scores)) <= self.settings.patience

        budget = self.settings.train_tokens // (2 * sum(len(one.reading.ids) for one in examples))
        self.train(rest, min(self.settings.epochs, budget), watch)
        best = max(scores)
        return scores.index(best) + 1, best[0]

    def train(
        self, examples: Sequence[_Example], epochs: int, watch: Callable[[Network], bool]
    ) -> tuple[Network, list[float]]:
        """The network after so many epochs, or after the first of which `watch` is false; and the loss of each step."""
        set_seed(self.settings.seed)
        network = Network(load_encoder(self.encoder), self.form)
        steps = epochs * -(-len(examples) // self.settings.batch)
        optimizer = _optimizer(network, self.settings)
        schedule = get_linear_schedule_with_warmup(optimizer, int(self.settings.warmup * steps), steps)
        shuffle = random.Random(self.settings.seed)
        losses: list[float] = []
        for _ in range(epochs):
            network.train()
            for batch in _batches(examples, self.settings.batch, shuffle):
                loss = _loss(network, batch, self.tokenizer.pad_token_id)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                losses.append(loss.item())
                if not math.isfinite(losses[-1] + float(norm)):
                    raise Refused(
                        f"the encoder's training diverged at step {len(losses)}: the loss or its gradient is no number "
                        'any more; choose another distiller.encoder, or leave "encoder" out of distiller.students'
                    )
                optimizer.step()
                schedule.step()
                self.on_progress(len(losses), steps, losses[-1])
            if not watch(network):
                break
        return network.eval(), losses


def _optimizer(network: Network, settings: EncoderSettings) -> torch.optim.Optimizer:
    """The token table stays as it is: most of the weights, and too little traffic to move them."""
    network.encoder.get_input_embeddings().weight.requires_grad_(False)
    heads = [*network.classes.parameters(), *network.tags.parameters(), *network.hashes.parameters()]
    body = [one for one in network.encoder.parameters() if one.requires_grad]
    groups = [{"params": body, "lr": settings.learning_rate}, {"params": heads, "lr": settings.head_learning_rate}]
    return torch.optim.AdamW(groups, weight_decay=0.01, fused=True)


def _batches(examples: Sequence[_Example], size: int, shuffle: random.Random) -> Iterator[list[_Example]]:
    """All examples once, in random batches of like lengths."""
    order = list(range(len(examples)))
    shuffle.shuffle(order)
    batches = []
    for start in range(0, len(order), size * _SORTED):
        near = sorted(order[start : start + size * _SORTED], key=lambda index: len(examples[index].reading.ids))
        batches += [near[first : first + size] for first in range(0, len(near), size)]
    shuffle.shuffle(batches)
    for batch in batches:
        yield [examples[index] for index in batch]


def _loss(network: Network, examples: Sequence[_Example], padding: int) -> torch.Tensor:
    """Nats an answer: the negative log-probability of all its classes and tags, each answer times its weight."""
    batch: Batch = collate([one.reading for one in examples], padding)
    classes, tags = network(batch)
    weights = torch.tensor([one.weight for one in examples], dtype=tags.dtype)[:, None]
    classes, tags = [scores * weights for scores in classes], tags * weights[..., None]
    width = tags.shape[1]
    wanted = torch.tensor([one.tags + [_PADDING_TAG] * (width - len(one.tags)) for one in examples], dtype=torch.long)
    total = F.nll_loss(tags.flatten(0, 1), wanted.flatten(), ignore_index=_PADDING_TAG, reduction="sum")
    for field, scores in enumerate(classes):
        total = total + F.nll_loss(
            scores, torch.tensor([one.targets.classes[field] for one in examples]), reduction="sum"
        )
    return total / len(examples)


@torch.inference_mode()
def _answers(
    network: Network, form: Form, texts: Sequence[str], readings: Sequence[Reading], padding: int
) -> list[Generated]:
    order = sorted(range(len(texts)), key=lambda index: len(readings[index].ids))
    answers: dict[int, Generated] = {}
    for start in range(0, len(order), _ANSWERED):
        batch = order[start : start + _ANSWERED]
        classes, tags = network(collate([readings[index] for index in batch], padding))
        for row, index in enumerate(batch):
            scores = [one[row] for one in classes]
            answers[index] = _answer(
                form, texts[index], readings[index], scores, tags[row, : len(readings[index].units)]
            )
    return [answers[index] for index in range(len(texts))]


def _answer(form: Form, text: str, reading: Reading, classes: Sequence[torch.Tensor], tags: torch.Tensor) -> Generated:
    """The likeliest answer to one text, from its classes' and tags' log-probabilities."""
    chosen = [one.max(0) for one in classes]
    path = likeliest(tags.numpy(), len(form.copied))
    certain = tags.gather(1, torch.tensor(path, dtype=torch.long)[:, None])[:, 0].tolist()
    found = spans_of(path, reading.units, len(form.copied))
    copies = [sum(certain[covered]) for _, covered in found]
    outside = sum(one for one, tag in zip(certain, path, strict=True) if tag == OUTSIDE)
    logprobs = [*(one.values.item() for one in chosen), *copies, *([outside] if form.copied else [])]
    spans: tuple[Span, ...] = tuple(span for span, _ in found)
    targets = Targets(tuple(int(one.indices) for one in chosen), spans)
    whole = not (form.copied and reading.cut)
    return Generated(
        write(form, text, targets), confidence(logprobs), whole, tuple(round(one, _DIGITS) for one in logprobs)
    )


def _save(folder: Path, network: Network, tokenizer: Any, form: Form, settings: EncoderSettings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    network.encoder.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, folder / "model.safetensors")
    write_facts(folder, KIND, {"form": asdict(form), "max_tokens": settings.max_tokens})
