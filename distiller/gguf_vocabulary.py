"""Owns how a tokenizer is told in a GGUF file: byte-level BPE, and how text is split before it.

Knows nothing of weights. llama.cpp has the ways of splitting text built in, by name; one it does not have is refused,
since text that is split otherwise becomes other tokens than the student learned from, and nobody would see it.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gguf import GGUFWriter, TokenType

from proxy.errors import Refused

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# Regular expression of a Split step -> llama.cpp's name, and whether words that are tokens are taken whole, unmerged.
_SPLITS: Mapping[str, tuple[str, bool]] = MappingProxyType({_QWEN2: ("qwen2", False), _LLAMA3: ("llama-bpe", True)})
_SPECIAL = ("bos", "eos", "unk", "pad")


def add_vocabulary(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    """Tells `tokenizer` (as transformers loads it) to `writer`, filled up to `size` tokens, the model's rows.

    Refused for a tokenizer that llama.cpp would not follow exactly.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    _check(told)
    tokens, types = _tokens(told, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(told))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in told["model"]["merges"]])
    for name in _SPECIAL:
        if (identity := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(identity)
    # The chat template writes every token of a prompt itself.
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer(told: Mapping[str, Any]) -> str:
    """llama.cpp's name of how this tokenizer (tokenizer.json's content) splits text; Refused where it has none."""
    step = told.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    name, whole = _named(steps)
    if name is None or bool(told["model"].get("ignore_merges")) != whole:
        raise Refused(f"this tokenizer splits text in a way that is not known to llama.cpp: {json.dumps(step)[:300]}")
    return name


def _named(steps: list[Mapping[str, Any]]) -> tuple[str | None, bool]:
    *first, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or len(first) > 1:
        return None, False
    if last.get("use_regex", True):
        if not first:
            return "gpt-2", False
        return ("smollm" if first[0] == {"type": "Digits", "individual_digits": True} else None), False
    split = first[0] if first else {}
    if split.get("type") != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        return None, False
    return _SPLITS.get(split["pattern"].get("Regex", ""), (None, False))


def _check(told: Mapping[str, Any]) -> None:
    """What llama.cpp has no word for must not be there. It does not normalise either: NFC text is its own NFC form."""
    model, normalizer = told["model"], told.get("normalizer") or {"type": "NFC"}
    if model["type"] != "BPE" or model.get("byte_fallback") or normalizer["type"] != "NFC":
        raise Refused(f"only byte-level BPE tokenizers can be exported, not {model['type']} with {normalizer['type']}")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise Refused("this tokenizer drops merges or marks parts of words, which llama.cpp does not")
    for token in told["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise Refused(f"the token {token['content']!r} takes spaces or word ends with it, which llama.cpp does not")


def _tokens(told: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; rows of the model that no token has are named and never used."""
    tokens, types = [f"[PAD{number}]" for number in range(size)], [int(TokenType.UNUSED)] * size
    for token, number in told["model"]["vocab"].items():
        tokens[number], types[number] = token, int(TokenType.NORMAL)
    for added in told["added_tokens"]:
        number = added["id"]
        tokens[number] = added["content"]
        types[number] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    return tokens, types
