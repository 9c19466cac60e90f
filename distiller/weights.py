"""Owns what of a base model learns: an adapter or all its weights, rows kept apart meanwhile, and how it is saved.

Knows nothing of rows, steps or losses. Equal weights give equal bytes on disk, and no path of this machine is in them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AttentionInterface

from distiller.attention import attend_row_by_row
from distiller.base import load_model
from distiller.lean_lora import LeanLinear
from proxy.errors import BadInput

ATTENTION = "row_by_row"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# All a model folder needs besides the weights: they are those of the base.
_BESIDES = ("*config.json", "*.jinja", "tokenizer*", "vocab*", "merges*", "*tokens*.json")


def load_for_training(base: Path) -> Any:
    """The base model with attention that keeps packed rows apart."""
    AttentionInterface.register(ATTENTION, attend_row_by_row)
    return load_model(base, attention=ATTENTION)


def with_adapter(model: Any, rank: int, alpha: int, layers: int | None) -> Any:
    """The model with a fresh adapter on every linear layer but the vocabulary head; everything else is frozen.

    `layers` is how many of the uppermost layers get one (None: all).
    """
    depth = model.config.num_hidden_layers
    top = depth if layers is None else min(layers, depth)
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=sorted(linear),
        layers_to_transform=list(range(depth - top, depth)),
    )
    config._register_custom_module({torch.nn.Linear: LeanLinear})
    return get_peft_model(model, config)


def gone_on_from(model: Any, adapter: Path) -> Any:
    """The model of `with_adapter` with the weights of the adapter in a folder; BadInput where their shapes differ."""
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    wanted = {name: weight.shape for name, weight in _adapter_of(model).items()}
    if wanted != {name: weight.shape for name, weight in weights.items()}:
        raise BadInput(f"the adapter in {adapter} has another shape than the one to train: start from the base")
    set_peft_model_state_dict(model, weights)
    return model


def _adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def all_weights(model: Any, layers: int | None) -> Any:
    """The model with its own weights learning, in float32: what a step adds is too small for bfloat16 to notice.

    With `layers` only the uppermost so many learn, and neither embeddings nor vocabulary head do.
    """
    model = model.float()
    if layers is not None:
        model.requires_grad_(False)
        for layer in model.get_decoder().layers[-layers:]:
            layer.requires_grad_(True)
    return model


def save_adapter(model: Any, base_name: str, folder: Path) -> None:
    """Writes the adapter's weights and configuration."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's empty model card; a student's own card is written elsewhere
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": base_name, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model(model: Any, base: Path, folder: Path) -> None:
    """Writes a whole model folder: the weights as numbers of the base's format, everything else as the base has it."""
    dtype = getattr(torch, json.loads((base / "config.json").read_text()).get("dtype") or "float32")
    once: dict[int, torch.Tensor] = {}  # tied weights are one tensor, and stay one
    weights = {
        name: once.setdefault(weight.data_ptr(), weight.detach().to(dtype))
        for name, weight in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=weights)
    for path in {path for pattern in _BESIDES for path in base.glob(pattern)}:
        shutil.copyfile(path, folder / path.name)
