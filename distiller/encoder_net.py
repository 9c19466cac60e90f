"""Owns the network of an encoder student: a small text encoder with a head for classes and one for tags.

Also how a text is read for it. Must not know answers, training or files of students: it is given a `Form`'s sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel
from transformers.utils import logging

from distiller.extraction import Form
from distiller.tagging import Unit, ngrams, units

BUCKETS = 2**14


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as the network reads it: token ids, the units that have tokens, and which tokens each has.

    `hashed` has the n-grams of the units the vocabulary does not know, by the unit's index. `cut`: it may be longer.
    """

    ids: list[int]
    units: list[Unit]
    tokens: list[tuple[int, int]]
    hashed: dict[int, list[int]]
    cut: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Readings padded to one width: `ids` and `mask` [rows, tokens], `share` [rows, units, tokens] averages tokens.

    `grams` are hashes laid end to end, those of the n-th unknown unit from `offsets[n]`; `owner` and `place` say for
    each token of an unknown unit which unit it is of, and where the token is in `ids` laid flat.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    share: torch.Tensor
    grams: torch.Tensor
    offsets: torch.Tensor
    owner: torch.Tensor
    place: torch.Tensor


class Network(nn.Module):
    """Scores classes and tags of a batch.

    A word the vocabulary lacks is one token for any word: what its letters are is learned in a table of hashed
    n-grams, which starts at zero.
    """

    def __init__(self, encoder: Any, form: Form) -> None:
        """`encoder` is a transformers model without a head; the sizes of both heads are those of `form`."""
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.sizes = [len(field.values) for field in form.closed]
        self.dropout = nn.Dropout(0.1)
        self.classes = nn.Linear(width, sum(self.sizes))
        self.tags = nn.Linear(width, 1 + 2 * len(form.copied))
        self.hashes = nn.EmbeddingBag(BUCKETS, width, mode="mean")
        nn.init.zeros_(self.hashes.weight)

    def forward(self, batch: Batch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Log-probabilities: of each field's classes [rows, classes], and of the tags [rows, units, tags]."""
        inputs = self.encoder.get_input_embeddings()(batch.ids)
        if len(batch.grams):
            known = self.hashes(batch.grams, batch.offsets)[batch.owner]
            inputs = inputs.flatten(0, 1).index_add(0, batch.place, known).view_as(inputs)
        states = self.encoder(inputs_embeds=inputs, attention_mask=batch.mask).last_hidden_state
        states = self.dropout(states)
        weights = batch.mask / batch.mask.sum(1, keepdim=True)
        scores = self.classes(torch.einsum("rt,rth->rh", weights, states)).split(self.sizes, dim=1)
        return tuple(one.log_softmax(-1) for one in scores), self.tags(batch.share @ states).log_softmax(-1)


def load_encoder(folder: Path) -> Any:
    """The encoder in a folder of transformers' layout, in float32."""
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(folder, dtype=torch.float32)


def read(tokenizer: Any, text: str, most_tokens: int) -> Reading:
    """How the network reads a text, of which what is past `most_tokens` tokens is cut off.

    Units are cut from the text itself, with its case and accents, whatever the tokenizer makes of them.
    """
    text = text.encode("utf-8", "replace").decode()  # A lone surrogate becomes one "?": the places stay.
    found = tokenizer(text, truncation=True, max_length=most_tokens, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    kept: list[Unit] = []
    tokens: list[tuple[int, int]] = []
    first = 0
    for start, end in units(text):
        while first < len(ids) and offsets[first][1] <= start:
            first += 1
        last = first
        while last < len(ids) and offsets[last][0] < end and offsets[last][1] > start:
            last += 1
        if last > first:
            kept.append((start, end))
            tokens.append((first, last))
    unknown = [i for i, (first, last) in enumerate(tokens) if tokenizer.unk_token_id in ids[first:last]]
    hashed = {i: ngrams(text[slice(*kept[i])], BUCKETS) for i in unknown}
    return Reading(ids, kept, tokens, hashed, cut=len(ids) >= most_tokens)


def collate(readings: Sequence[Reading], padding: int) -> Batch:
    """The readings as one batch; `padding` is the tokenizer's token for it."""
    ids = pad_sequence([torch.tensor(one.ids) for one in readings], batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(one.ids) for one in readings])
    width = ids.shape[1]
    share = torch.zeros(len(readings), max(len(one.units) for one in readings), width)
    grams: list[int] = []
    offsets: list[int] = []
    owner: list[int] = []
    place: list[int] = []
    for row, one in enumerate(readings):
        for unit, (first, last) in enumerate(one.tokens):
            share[row, unit, first:last] = 1 / (last - first)
        for unit, hashes in one.hashed.items():
            first, last = one.tokens[unit]
            place += range(row * width + first, row * width + last)
            owner += [len(offsets)] * (last - first)
            offsets.append(len(grams))
            grams += hashes
    mask = (torch.arange(width) < lengths[:, None]).float()
    flat = (torch.tensor(values, dtype=torch.long) for values in (grams, offsets, owner, place))
    return Batch(ids, mask, share, *flat)
