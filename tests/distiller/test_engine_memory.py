import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from distiller.engine_memory import GIB, engine_memory, parameters, token_bytes
from proxy.errors import BadInput
from tests.distiller.toy import build_toy


def test_parameters_are_counted_as_the_model_has_them(tmp_path: Path) -> None:
    build_toy(tmp_path, ["a lamp is red"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert parameters(tmp_path) == sum(one.numel() for one in model.parameters())


def test_weights_and_cache_follow_the_formula(tmp_path: Path) -> None:
    build_toy(tmp_path, ["a lamp is red"])
    found = engine_memory(tmp_path, 2, tokens=100, sequences=8)
    assert found.weights == 2 * found.parameters / GIB
    assert found.cache == 2 * 2 * 2 * 32 * 2 * 100 * 8 / GIB
    assert found.total == found.weights + found.cache


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}, 23040),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 512),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "head_dim": 32}, 1024),
        ({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}}, 512),
    ],
)
def test_a_token_leaves_keys_and_values_in_every_layer(config: dict[str, object], expected: int) -> None:
    assert token_bytes(config, 2) == expected


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no"):
        parameters(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(BadInput, match="no safetensors file"):
        parameters(tmp_path)
    build_toy(tmp_path, ["a"])
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 1}))
    with pytest.raises(BadInput, match="num_attention_heads"):
        engine_memory(tmp_path, 2, 1, 1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        engine_memory(tmp_path, 2, 1, 1)
