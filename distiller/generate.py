"""Owns greedy answers from base or student in this process: for the holdout score and for the golden prompts.

Knows nothing of exchanges, scores or servers. It answers what vLLM would at temperature 0, and measures the same
confidence, so that what is decided here still holds when the student is served.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, DynamicCache, GenerationConfig

from distiller.base import load_model, shared_threads
from distiller.examples import render_prompt
from distiller.lanes import lanes
from router.confidence import confidence

BATCH = 16
_DIGITS = 6  # of a kept log-probability: they go into the bundle with the holdout


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer, the confidence in it (`router.confidence`), and whether it ended by itself before `max_tokens`.

    `logprobs` has one number a token, end of turn included, in nats. `prompt_tokens` is what was read. A student that
    chooses among whole answers tells the `likeliest` with their log-probabilities, best first.
    """

    text: str
    confidence: float
    finished: bool
    logprobs: tuple[float, ...]
    prompt_tokens: int = 0
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A language model ready to answer; at one of `stops` it ends its turn."""

    network: Any
    tokenizer: Any
    stops: frozenset[int]


@torch.inference_mode()
def generate(
    base: Path,
    adapter: Path | None,
    prompts: Sequence[Sequence[dict[str, str]]],
    max_tokens: int,
    threads: int,
    on_progress: Callable[[int, int], None],
) -> list[Generated]:
    """The most likely answer to each of `prompts` (as `student_messages` gives them), in their order.

    At most `max_tokens` tokens each, end of turn included. `on_progress(done, total)` is called after each batch. On a
    CPU so many batches are answered at once as there are `threads`; which prompts are in one does not depend on them.
    """
    torch.set_num_threads(threads)
    model = load_student(base, adapter)
    texts = [render_prompt(model.tokenizer, prompt) for prompt in prompts]
    ids = [list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # like lengths together: little padding
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    answers: dict[int, Generated] = {}
    with lanes(shared_threads(model.network.config, threads)) as some:
        told = some.each(lambda batch: _answer(model, [ids[index] for index in batch], max_tokens), batches)
        for batch, own in zip(batches, told, strict=True):
            answers |= zip(batch, own, strict=True)
            on_progress(len(answers), len(ids))
    return [answers[index] for index in range(len(ids))]


def load_student(base: Path, adapter: Path | None) -> Model:
    """Base, or base and adapter as one, on the GPU where there is one."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    network = load_model(base)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter).merge_and_unload()
    network = network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Model(network, tokenizer, _stops(base, tokenizer))


def _stops(base: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens vLLM stops at: the tokenizer's end of sequence and those of the generation config."""
    stops = {tokenizer.eos_token_id}
    if (base / "generation_config.json").is_file():
        more = GenerationConfig.from_pretrained(base).eos_token_id
        stops |= set(more) if isinstance(more, list) else {more}
    return frozenset(stops - {None})


def _answer(model: Model, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Generated]:
    """Answers one batch of tokenized prompts, padded on the left so that all continue at the same place."""
    device = model.network.device
    width = max(len(prompt) for prompt in prompts)
    padding = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=device)
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.network.config)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    for _ in range(max_tokens):
        scores = model.network(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        best = scores.float().log_softmax(-1).max(-1)
        for row, (token, logprob) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            if not _ended(tokens[row], model.stops):
                tokens[row].append(token)
                logprobs[row].append(logprob)
        if all(_ended(row, model.stops) for row in tokens):
            break
        ids, positions = best.indices[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return [
        Generated(
            model.tokenizer.decode(row, skip_special_tokens=True),
            confidence(logs),
            _ended(row, model.stops),
            tuple(round(log, _DIGITS) for log in logs),
            len(prompt),
        )
        for prompt, row, logs in zip(prompts, tokens, logprobs, strict=True)
    ]


def _ended(tokens: Sequence[int], stops: frozenset[int]) -> bool:
    return bool(tokens) and tokens[-1] in stops
