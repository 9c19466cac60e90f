"""Owns a LoRA adapter as a GGUF file, which llama.cpp adds to a model while it computes.

Knows nothing of tasks or engines. Four bits a weight can be too few for what an adapter changes. The default base was
unpacked from a 4-bit file, so its weights lie on that very grid, and rounding brings the merged ones back to it: of one
short training's change 6 % was left (Q4_1). Kept apart, the adapter loses nothing. The same adapter gives the same
bytes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Format
from gguf import GGUFType, GGUFWriter, Keys, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH_NAMES
from safetensors import safe_open
from transformers import AutoConfig

from distiller.gguf_file import family, ordered
from proxy.errors import Refused

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
# What peft may have been asked for that llama.cpp's sum of two matrices is not.
_PLAIN: Mapping[str, Any] = MappingProxyType(
    {
        "use_rslora": False, "use_dora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {},
    }
)  # fmt: skip


def write_adapter(base: Path, adapter: Path, name: str, target: Path) -> None:
    """Writes the peft adapter in `adapter`, trained on the model in `base`, to `target`, calling itself `name`.

    Refused for what is more than two matrices a weight, and for a weight that a GGUF file has no name for.
    """
    told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if odd := [key for key, plain in _PLAIN.items() if (told.get(key) or plain) != plain]:
        raise Refused(f"the adapter was trained with {', '.join(odd)}, which llama.cpp does not compute")
    config = AutoConfig.from_pretrained(base)
    arch = family(config)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(target, arch=MODEL_ARCH_NAMES[arch])
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, float(told["lora_alpha"]))
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as held:
        for source in sorted(held.keys()):
            found = _NAME.fullmatch(source)
            weight = found and names.get_name(found["module"] + ".weight", try_suffixes=(".weight",))
            if not (found and weight):
                raise Refused(f"the adapter has a tensor that a GGUF file has no name for: {source}")
            data = held.get_tensor(source).float().numpy()
            if found["part"] == "B":  # its rows are the weight's
                data = ordered(weight, data, config)
            writer.add_tensor(f"{weight}.lora_{found['part'].lower()}", _half(data), raw_dtype=Format.F16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _half(data: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
    if np.abs(data).max() > np.finfo(np.float16).max:
        raise Refused("the adapter has numbers too large for 16 bits: it diverged in training")
    return np.asarray(quants.quantize(data, Format.F16))
