"""Owns how much memory an engine will take for a base model. Must not load the model, nor need torch to say so.

    weights = parameters * width
    cache   = 2 * layers * key-value heads * head size * width * tokens of a sequence * sequences

with width 2 bytes a number in bfloat16 and 4 in float32, and 2 for keys and values. What the engine itself takes, about
1 GiB, activations and adapters come on top.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.errors import BadInput

GIB = 2**30
_LENGTH = 8  # bytes of a safetensors file that say how long its header is


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """In GiB; the cache is for `sequences` of `tokens` each."""

    parameters: int
    width: int
    weights: float
    cache: float
    sequences: int
    tokens: int

    @property
    def total(self) -> float:
        """Both together."""
        return self.weights + self.cache


def engine_memory(folder: Path, width: int, tokens: int, sequences: int) -> EngineMemory:
    """For the base model in `folder`, in the layout of save_pretrained; BadInput where it cannot be told from it."""
    count = parameters(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}/config.json cannot be read: {error}") from None
    cache = token_bytes(config, width) * tokens * sequences
    return EngineMemory(count, width, count * width / GIB, cache / GIB, sequences, tokens)


def token_bytes(config: Mapping[str, Any], width: int) -> int:
    """Bytes of keys and values that one token leaves in the cache; BadInput for a configuration of another form."""
    text = config.get("text_config", config)
    try:
        heads = int(text["num_attention_heads"])
        size = int(text.get("head_dim") or text["hidden_size"] // heads)
        return 2 * int(text["num_hidden_layers"]) * int(text.get("num_key_value_heads") or heads) * size * width
    except (KeyError, TypeError) as error:
        raise BadInput(f"the base model's config.json says nothing of its attention: {error} is missing") from None


def parameters(folder: Path) -> int:
    """Numbers in the model's *.safetensors, from their headers; BadInput where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder} holds no *.safetensors: its size is not known before it is loaded")
    return sum(_numbers(file) for file in files)


def _numbers(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(_LENGTH), "little")))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is no safetensors file: {error}") from None
