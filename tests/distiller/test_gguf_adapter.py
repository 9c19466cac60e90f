from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from distiller.edge import Running, Served, start_llama
from distiller.gguf_adapter import write_adapter
from distiller.gguf_file import write_gguf
from proxy.errors import Refused
from tests.distiller.test_gguf_file import CONFIGS, shaken


def adapted(base: Path, name: str, folder: Path, **changes: Any) -> Any:
    """A random model in `base`, and with it a random adapter of every linear layer in `folder`."""
    network = shaken(base, CONFIGS[name])
    with torch.random.fork_rng():
        torch.manual_seed(2)
        given: dict[str, Any] = {"r": 8, "lora_alpha": 24, "target_modules": "all-linear", "init_lora_weights": False}
        network = get_peft_model(network, LoraConfig(**(given | changes))).eval()
    network.save_pretrained(folder)
    return network


def answer(folder: Path, adapter: str, ids: list[int]) -> dict[int, float] | None:
    """The log-probability of every token after `ids`, as llama.cpp tells it; None of a part of a character."""
    engine = start_llama(Served("student-1", "it.gguf", adapter, {}, (), 8), folder, Running(256, 1))
    asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 320, "cache_prompt": False}
    said = httpx.post(f"{engine.listening_address}/completion", json=asked).json()
    told = said.get("completion_probabilities")
    return {one["id"]: one["logprob"] for one in told[0]["top_logprobs"]} if told else None


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_adds_the_adapter_as_peft_does(name: str, tmp_path: Path) -> None:
    network = adapted(tmp_path / "base", name, tmp_path / "adapter")
    write_gguf(tmp_path / "base", "bf16", "student-1", tmp_path / "it.gguf")
    write_adapter(tmp_path / "base", tmp_path / "adapter", "student-1", tmp_path / "adapter.gguf")
    apart, changed = [], []
    for seed in range(8):
        ids = [int(one) for one in np.random.default_rng(seed).integers(3, 260, 40)]
        with torch.inference_mode():
            wanted = network(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
        for file, into in (("adapter.gguf", apart), ("", changed)):
            if found := answer(tmp_path, file, ids):
                into.append(np.abs(np.array([found[one] for one in range(320)]) - wanted).mean() / wanted.std())
    assert min(len(apart), len(changed)) >= 2
    assert max(apart) < 0.1
    assert min(changed) > 0.3  # without it the model says something else


def test_the_same_adapter_gives_the_same_bytes_and_says_what_it_is(tmp_path: Path) -> None:
    adapted(tmp_path / "base", "llama", tmp_path / "adapter")
    for name in ("a", "b"):
        write_adapter(tmp_path / "base", tmp_path / "adapter", "student-1", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = {name: field.contents() for name, field in GGUFReader(tmp_path / "a").fields.items()}
    assert (found["general.type"], found["adapter.type"], found["adapter.lora.alpha"]) == ("adapter", "lora", 24.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_rslora": True}, "trained with use_rslora"),
        ({"use_dora": True}, "trained with use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "trained with rank_pattern"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    adapted(tmp_path / "base", "llama", tmp_path / "adapter", **change)
    with pytest.raises(Refused, match=said):
        write_adapter(tmp_path / "base", tmp_path / "adapter", "student-1", tmp_path / "it.gguf")


def test_a_tensor_without_a_name_and_a_number_too_large_are_refused(tmp_path: Path) -> None:
    adapted(tmp_path / "base", "llama", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(file)
    save_file(held | {"base_model.model.model.extra.lora_A.weight": torch.ones(2, 2)}, file)
    with pytest.raises(Refused, match=r"no name for: base_model\.model\.model\.extra"):
        write_adapter(tmp_path / "base", tmp_path / "adapter", "student-1", tmp_path / "it.gguf")
    save_file({name: one * 1e9 for name, one in held.items()}, file)
    with pytest.raises(Refused, match="too large for 16 bits"):
        write_adapter(tmp_path / "base", tmp_path / "adapter", "student-1", tmp_path / "it.gguf")
