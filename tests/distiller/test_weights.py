import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distiller.weights import all_weights, gone_on_from, load_for_training, save_adapter, save_model, with_adapter
from proxy.errors import BadInput
from tests.distiller.toy import build_toy


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_toy(folder, ["any text will do"])
    return folder


def test_only_the_uppermost_layers_get_an_adapter_when_asked(base):
    model = with_adapter(load_for_training(base), 8, 16, layers=1)
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(learning) == 14
    assert all(".layers.1." in name and "lora_" in name for name in learning)


def test_only_the_uppermost_layers_learn_when_asked(base):
    model = all_weights(load_for_training(base), layers=1)
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(learning) == 9
    assert all("layers.1." in name for name in learning)


def test_an_adapter_of_another_shape_is_not_gone_on_from(base, tmp_path):
    save_adapter(with_adapter(load_for_training(base), 8, 16, None), base.name, tmp_path / "a")
    model = gone_on_from(with_adapter(load_for_training(base), 8, 16, None), tmp_path / "a")
    save_adapter(model, base.name, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    for other in (with_adapter(load_for_training(base), 16, 32, None), with_adapter(load_for_training(base), 8, 16, 1)):
        with pytest.raises(BadInput, match="start from the base"):
            gone_on_from(other, tmp_path / "a")


def test_what_learns_is_float32(base):
    """A step's change is lost in bfloat16, whatever the machine computes in."""
    for model in (with_adapter(load_for_training(base), 8, 16, None), all_weights(load_for_training(base), None)):
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def test_tied_weights_stay_tied_and_numbers_keep_the_format_of_the_base(base, tmp_path):
    whole = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(whole)
    model = all_weights(load_for_training(whole), None)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    save_model(model, whole, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in saved
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
    torch.testing.assert_close(again.lm_head.weight, model.lm_head.weight.detach().bfloat16())


def test_a_model_folder_holds_what_the_base_holds_and_no_path(base, tmp_path):
    save_model(all_weights(load_for_training(base), None), base, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert str(base) not in json.dumps([path.read_text() for path in (tmp_path / "out").glob("*.json")])
