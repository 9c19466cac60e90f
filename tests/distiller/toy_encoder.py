"""A tiny random BERT with its own WordPiece tokenizer, in the folder layout real encoders have."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def build_toy_encoder(
    folder: Path, texts: Sequence[str], *, width: int = 32, layers: int = 2, positions: int = 64, spread: float = 0.2,
    pieces: int = 200, letters: int = 40,
) -> None:  # fmt: skip
    """Writes model and tokenizer (WordPiece trained on `texts`, lower case) to `folder`; equal texts, equal bytes.

    It has `pieces` pieces of words at most, made of `letters` letters: the others are unknown, as other scripts are to
    a real one. With a narrow `spread` of the weights the words remain in what comes out.
    """
    tokenizer = _tokenizer(texts, pieces, letters, positions)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=spread,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(texts: Sequence[str], pieces: int, letters: int, positions: int) -> PreTrainedTokenizerFast:
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=pieces, special_tokens=SPECIAL, limit_alphabet=letters, show_progress=False, min_frequency=1
    )
    wordpiece.train_from_iterator(texts, trainer)
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=positions,
    )  # fmt: skip
