"""Owns one folder of weights out of two: base and adapter become a model that any engine loads by itself.

Knows nothing of tasks, quantisation or engines. The same base and adapter give the same bytes.

It is merged in float32 and compared with the unmerged model there: in bfloat16 both answer differently by as much as
rounding does, and a mistake of that size could not be seen. What is written is in the base's own number format.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from distiller.examples import render_prompt
from proxy.errors import BadInput, Refused

TOLERANCE = 1e-3  # of a logit, in float32
_WEIGHTS = "model.safetensors"


@torch.inference_mode()
def merge(
    base: Path, adapter: Path, prompts: Sequence[Sequence[Mapping[str, str]]], folder: Path, threads: int
) -> float:
    """Writes the merged model with tokenizer and chat template to `folder`; the largest difference of a logit.

    `prompts` (as `student_messages` gives them) are what both are compared on. Refused where they differ by more than
    `TOLERANCE`, or what was written is not what was compared; BadInput without prompts.
    """
    if not prompts:
        raise BadInput("there is no prompt left to compare the merged model on: distill the task again")
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    native = AutoConfig.from_pretrained(base).dtype or torch.float32
    network = PeftModel.from_pretrained(plain, adapter).eval()
    ids = [tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"] for prompt in prompts]
    before = _logits(network, ids)
    try:
        merged = network.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:  # weights that are no numbers
        raise Refused(f"the adapter cannot be merged: {error}") from None
    delta = max(float((a - b).abs().max()) for a, b in zip(before, _logits(merged, ids), strict=True))
    if not delta <= TOLERANCE:  # NaN is no agreement either
        raise Refused(f"merged, a logit differs by {delta:.2g}, which is more than {TOLERANCE:.0e}: distill again")
    _write(merged.to(native), tokenizer, base, folder)
    return delta


def weights(folder: Path) -> int:
    """How many numbers the model in `folder` has."""
    with safe_open(folder / _WEIGHTS, framework="pt") as held:
        return sum(math.prod(held.get_slice(name).get_shape()) for name in held.keys())  # noqa: SIM118 - no mapping


def _logits(network: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    return [network(input_ids=torch.tensor([ids]), use_cache=False).logits[0].clone() for ids in prompts]


def _write(network: Any, tokenizer: Any, base: Path, folder: Path) -> None:
    network.save_pretrained(folder, max_shard_size="1TB")  # one file, whatever the size
    tokenizer.save_pretrained(folder)
    if (base / "generation_config.json").is_file():  # where engines find at which tokens to stop
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    held = network.state_dict()
    for name, tensor in load_file(folder / _WEIGHTS).items():
        if not torch.equal(tensor, held[name]):
            raise Refused(f"{folder / _WEIGHTS} was not written as it was merged, as {name} shows: check the disk")
