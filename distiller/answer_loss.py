"""Owns how likely a student thinks the teacher's own answers: the loss it was trained on, on rows it never saw.

Must not know which rows these are, nor what is made of the figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distiller.curate import Recorded
from distiller.examples import Encoded, encode
from distiller.generate import load_student
from distiller.losses import hard_loss
from proxy.errors import BadInput


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one answer: `nats`, the sum over its `tokens`, of which the end of turn is one."""

    nats: float
    tokens: int


@torch.inference_mode()
def answer_losses(
    base: Path,
    adapter: Path | None,
    rows: Sequence[Recorded],
    prompts: Sequence[Sequence[dict[str, str]]],
    most: int,
    threads: int,
    on_progress: Callable[[int, int], None],
) -> list[Loss | None]:
    """The cross-entropy of the answers to `rows`, whose prompts are given as a student sees them, in their order.

    None for a row longer than `most` tokens, or that is no text a student could be taught.
    """
    torch.set_num_threads(threads)
    student = load_student(base, adapter)
    found: list[Loss | None] = []
    for row, prompt in zip(rows, prompts, strict=True):
        found.append(_loss(student.network, _encoded(student.tokenizer, prompt, row.answer), most))
        on_progress(len(found), len(rows))
    return found


def _encoded(tokenizer: Any, prompt: Sequence[dict[str, str]], answer: str) -> Encoded | None:
    try:
        return encode(tokenizer, prompt, answer)
    except BadInput:  # Only what is trained on has to fit the template.
        return None


def _loss(network: Any, row: Encoded | None, most: int) -> Loss | None:
    if row is None or len(row.input_ids) > most:
        return None
    answer = row.input_ids[row.prompt_length :]
    ids = torch.tensor([row.input_ids], device=network.device)
    logits = network(input_ids=ids, logits_to_keep=len(answer) + 1, use_cache=False).logits[0, :-1]
    loss = hard_loss(logits, torch.tensor(answer, device=network.device))
    return Loss(float(loss) * len(answer), len(answer))
