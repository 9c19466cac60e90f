"""Owns small bases made of one that is there: every second layer of it, or its layers with another tokenizer.

Must not know teachers, tasks, or what grows from them. Equal input gives equal bytes. SmolLM2-135M is the only
real causal model this small that a package ships here, so others are made of it; `mended` then trains all their weights
as language models on texts, without answers, as otherwise neither has a language left to learn a task in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from distiller.examples import Encoded, render_prompt
from distiller.token_bytes import TokenBytes
from distiller.train import TrainSettings, train

Progress = Callable[[int, int, float], None]


def halved(base: Path, folder: Path) -> None:
    """Writes every second layer of `base`, its first and last among them, to `folder`.

    Layers of the teacher itself are what DistilBERT was begun with (Sanh et al. 2019, arXiv:1910.01108).
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    decoder = model.get_decoder()
    kept = [decoder.layers[place] for place in half(len(decoder.layers))]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number  # which part of a cache is its own
    decoder.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def half(layers: int) -> list[int]:
    """Numbers of half of so many layers, evenly spaced from the first to the last."""
    count = max(layers // 2, 1)
    return [round(place * (layers - 1) / max(count - 1, 1)) for place in range(count)]


def respelled(base: Path, texts: Sequence[str], vocabulary: int, folder: Path) -> None:
    """Writes `base` with a tokenizer of its own, byte-level BPE over `texts` of at most so many tokens, to `folder`.

    A new token begins as the mean of the old tokens that its bytes are, so that the layers read what they know; one for
    a byte that the old tokenizer cannot spell as the mean of all.
    """
    old = AutoTokenizer.from_pretrained(base)
    new = _tokenizer(old, texts, vocabulary)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    parts = _parts(old, new)
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [torch.stack([_begun(layer.weight.detach(), part) for part in parts]) for layer in both]
    model.resize_token_embeddings(len(new), mean_resizing=False)
    with torch.no_grad():
        for get, table in zip((model.get_input_embeddings, model.get_output_embeddings), tables, strict=True):
            get().weight.copy_(table)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = (
            new.bos_token_id, new.eos_token_id, new.pad_token_id,
        )  # fmt: skip
    model.save_pretrained(folder)
    new.save_pretrained(folder)


def mended(
    base: Path, texts: Sequence[str], tokens: int, settings: TrainSettings, folder: Path, on_progress: Progress
) -> None:
    """Trains all weights of `base` for one epoch on the first of `texts`, `tokens` in sum, and writes it to `folder`.

    Each text is what a user said, as the model's template renders it. It is not followed by an answer.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [render_prompt(tokenizer, _turn(text)) for text in texts]
    ids = [list(tokenizer(turn, add_special_tokens=False)["input_ids"]) for turn in turns]
    fits = [row for row in ids if len(row) <= settings.max_tokens]
    rows = [Encoded(row, 1) for row, total in zip(fits, accumulate(map(len, fits)), strict=True) if total <= tokens]
    train(base, rows, replace(settings, method="full", epochs=1), folder, on_progress)


def _turn(text: str) -> list[dict[str, str]]:
    """As a student reads it: its instructions were the same in every request, and are left out."""
    return [{"role": "system", "content": ""}, {"role": "user", "content": text}]


def _tokenizer(old: Any, texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """With the old one's special tokens, template and way to cut texts into words."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = old.backend_tokenizer.pre_tokenizer, old.backend_tokenizer.decoder
    added = sorted(old.backend_tokenizer.get_added_tokens_decoder().items())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[token for _, token in added if token.special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=old.unk_token,
        bos_token=old.bos_token,
        eos_token=old.eos_token,
        pad_token=old.pad_token,
        chat_template=old.chat_template,
        clean_up_tokenization_spaces=False,
    )


def _begun(weight: torch.Tensor, part: Sequence[int]) -> torch.Tensor:
    """One row for a new token, from those of its old ones; from all where it has none."""
    return (weight[part] if part else weight).float().mean(0)


def _parts(old: Any, new: Any) -> list[list[int]]:
    """For each new token the old ones that it is, if any: both spell bytes one way, and merges need no whole words."""
    before, after = old.backend_tokenizer, new.backend_tokenizer
    pieces = TokenBytes(after)
    return [
        [before.token_to_id(spelled)]
        if pieces.piece(token) is None
        else [part.id for part in before.model.tokenize(spelled)]
        for token in range(len(new))
        for spelled in (after.id_to_token(token),)
    ]
