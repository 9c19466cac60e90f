import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from distiller.gguf_vocabulary import add_vocabulary, pre_tokenizer
from proxy.errors import Refused
from tests.distiller.toy import TEMPLATE, build_tokenizer

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


def told(step: Any, ignore_merges: bool = False) -> dict[str, Any]:
    bpe = build_tokenizer(["a text"]).backend_tokenizer
    bpe.pre_tokenizer = step
    found: dict[str, Any] = json.loads(bpe.to_str())
    found["model"]["ignore_merges"] = ignore_merges
    return found


@pytest.mark.parametrize(
    ("step", "ignore_merges", "name"),
    [
        (WORDS, False, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]), False, "smollm"),
        (split(QWEN2), False, "qwen2"),
        (split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), True, "llama-bpe"),
    ],
)
def test_ways_of_splitting_that_llama_cpp_has_are_named(step: Any, ignore_merges: bool, name: str) -> None:
    assert pre_tokenizer(told(step, ignore_merges)) == name


@pytest.mark.parametrize(
    ("step", "ignore_merges"),
    [
        (WORDS, True),
        (BYTES, False),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), WORDS]), False),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "removed"), BYTES]), False),
        (split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), False),
        (split(r"\w+"), False),
        (pre_tokenizers.Metaspace(), False),
        (pre_tokenizers.Sequence([]), False),
        (None, False),
    ],
)
def test_what_it_does_not_have_is_refused(step: Any, ignore_merges: bool) -> None:
    content = told(step or WORDS, ignore_merges)
    if step is None:
        content["pre_tokenizer"] = None
    with pytest.raises(Refused, match="splits text in a way that is not known"):
        pre_tokenizer(content)


def written(tokenizer: Any, size: int, folder: Path) -> dict[str, Any]:
    writer = GGUFWriter(folder / "words.gguf", "llama")
    add_vocabulary(writer, tokenizer, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {name: field.contents() for name, field in GGUFReader(folder / "words.gguf").fields.items()}


def test_tokens_types_merges_and_template_are_read_back(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["lamp after lamp is amber"])
    tokenizer.add_tokens(["<note>"])
    size = len(tokenizer) + 3
    found = written(tokenizer, size, tmp_path)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:-3] == tokenizer.convert_ids_to_tokens(range(size - 3))
    assert (len(tokens), types[:3], types[-4:]) == (size, [TokenType.CONTROL] * 3, [TokenType.USER_DEFINED] + [5] * 3)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert [tuple(merge.split(" ")) for merge in found["tokenizer.ggml.merges"]] == [tuple(merge) for merge in merges]
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.chat_template"]) == (False, TEMPLATE)


def test_the_live_tokenizer_decides_not_the_file(tmp_path: Path) -> None:
    """transformers may build a tokenizer of its own from a file: the student was taught with what it built."""
    build_tokenizer(["a text"]).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    held = json.loads(file.read_text())
    held["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [held["pre_tokenizer"]]}
    file.write_text(json.dumps(held))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert written(tokenizer, len(tokenizer), tmp_path)["tokenizer.ggml.pre"] == "gpt-2"


def lowercased(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def marked(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.model.end_of_word_suffix = "</w>"


def greedy(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<note>", lstrip=True)])


@pytest.mark.parametrize(
    ("change", "said"),
    [(lowercased, "with Lowercase"), (marked, "marks parts of words"), (greedy, "takes spaces or word ends")],
)
def test_a_tokenizer_that_cannot_be_followed_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a text"])
    change(tokenizer)
    with pytest.raises(Refused, match=said):
        written(tokenizer, len(tokenizer), tmp_path)
