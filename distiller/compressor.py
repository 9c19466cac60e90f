"""Owns the step from a merged model to fewer bits a weight, as llm-compressor takes it: weights that vLLM reads.

It is run by path with another Python (`distiller.compress`), since llm-compressor wants other libraries than training
and serving do; so it must import nothing of ours. FP8 is rounded without data, and activations are while they are
computed; four bits are fitted to rows by GPTQ (arXiv 2210.17323). The vocabulary's weights stay as they are.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SIZES = (128, 64, 32)  # weights that share a scale: what vLLM's kernels know, the smallest file first


def group_size(widths: Iterable[int]) -> int:
    """How many weights share a scale: the most of `SIZES` that divide every width. ValueError where none does."""
    known = sorted(set(widths))
    for size in SIZES:
        if not any(width % size for width in known):
            return size
    raise ValueError(f"layers of {', '.join(map(str, known))} inputs cannot be cut into groups of {SIZES[-1]} weights")


def compress(model: Path, scheme: str, rows: Sequence[Sequence[int]], folder: Path, threads: int) -> None:
    """Write the model to `folder` by `scheme`, `fp8` or `w4a16`; `rows` are the token ids that the latter is fitted to.

    Tokenizer and template are not written: they stay what they were.
    """
    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    widths = [one.in_features for name, one in _linear(network, torch.nn.Linear) if name != "lm_head"]
    recipe = _fp8() if scheme == "fp8" else _w4a16(group_size(widths))
    ids = [torch.tensor([row]) for row in rows]
    asked = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    data: Any = torch.utils.data.DataLoader(asked, batch_size=None) if asked else None  # type: ignore[arg-type]
    oneshot(model=network, tokenizer=AutoTokenizer.from_pretrained(model), recipe=recipe, dataset=data)
    network.save_pretrained(folder, save_compressed=True, max_shard_size="1TB")  # one file, whatever the size


def _linear(network: Any, kind: type) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]


def _fp8() -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(targets=["Linear"], scheme="FP8_DYNAMIC", ignore=["lm_head"])


def _w4a16(size: int) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": size}
    return GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])


def main() -> int:
    """`python -I compressor.py MODEL SCHEME ROWS FOLDER THREADS`; ROWS is a JSON file of lists of token ids."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("scheme", choices=["fp8", "w4a16"])
    parser.add_argument("rows", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    told = parser.parse_args()
    compress(told.model, told.scheme, json.loads(told.rows.read_text(encoding="utf-8")), told.folder, told.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
