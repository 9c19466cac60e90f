"""Owns a model as a GGUF file, which llama.cpp loads: architecture, tensor names, order of rows, number formats.

Knows nothing of tasks, students or engines. The same folder gives the same bytes. Two families are known, Llama and
Qwen2; anything about a model that the file could not say is refused, not left out.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Format
from gguf import GGUFWriter, LlamaFileType, get_tensor_name_map, quants
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, MODEL_ARCH, MODEL_ARCH_NAMES
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from distiller.gguf_vocabulary import add_vocabulary
from proxy.errors import Refused

# Kind -> the format of matrices, and of those that stand for tokens: these decide most, and are few in a large model.
KINDS: Mapping[str, tuple[Format, Format, LlamaFileType]] = MappingProxyType(
    {
        "bf16": (Format.BF16, Format.BF16, LlamaFileType.MOSTLY_BF16),
        "q8_0": (Format.Q8_0, Format.Q8_0, LlamaFileType.MOSTLY_Q8_0),
        "q4_0": (Format.Q4_0, Format.Q8_0, LlamaFileType.MOSTLY_Q4_0),
        "q4_1": (Format.Q4_1, Format.Q8_0, LlamaFileType.MOSTLY_Q4_1),
    }
)
_FAMILIES = MappingProxyType({"LlamaForCausalLM": MODEL_ARCH.LLAMA, "Qwen2ForCausalLM": MODEL_ARCH.QWEN2})
_TOKENS = ("token_embd", "output")


def write_gguf(folder: Path, kind: str, name: str, target: Path) -> None:
    """Writes the model in `folder` (`save_pretrained` layout) to `target`, one of `KINDS`, calling itself `name`.

    Refused for an architecture, a rope or a tokenizer that is not known, and for matrices that cannot be quantised.
    """
    config = AutoConfig.from_pretrained(folder)
    arch = family(config)
    writer = GGUFWriter(target, arch=MODEL_ARCH_NAMES[arch])
    _add_architecture(writer, config, arch)
    writer.add_name(name)
    writer.add_file_type(int(KINDS[kind][2]))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_vocabulary(writer, AutoTokenizer.from_pretrained(folder), config.vocab_size)
    for tensor, data in tensors(folder):
        stored, values = _stored(tensor, data, kind)
        writer.add_tensor(tensor, values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor of the model in `folder` by its GGUF name, in float32, rows in llama.cpp's order; by name."""
    config = AutoConfig.from_pretrained(folder)
    arch = family(config)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as held:
            for source in sorted(held.keys()):
                name = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise Refused(f"the model has a tensor that a GGUF file has no name for: {source}")
                yield name, ordered(name, held.get_tensor(source).float().numpy(), config)


def ordered(name: str, data: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """The rows of a weight, or of what is added to it, in llama.cpp's order.

    Rotary positions turn pairs of rows: transformers pairs a row with the one half a head on, llama.cpp's Llama with
    the next one.
    """
    if family(config) != MODEL_ARCH.LLAMA:
        return data
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return data
    halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(data.shape))


def _stored(name: str, data: NDArray[np.float32], kind: str) -> tuple[Format, NDArray[Any]]:
    matrices, tokens, _ = KINDS[kind]
    if data.ndim == 1:
        return Format.F32, data
    format_ = tokens if name.split(".")[0] in _TOKENS else matrices
    block = GGML_QUANT_SIZES[format_][0]
    if data.shape[-1] % block:
        raise Refused(f"{name} has rows of {data.shape[-1]} numbers, and {kind} takes {block} at a time: use bf16")
    return format_, quants.quantize(data, format_)


def family(config: Any) -> MODEL_ARCH:
    """Which of llama.cpp's architectures a model is; Refused for one that is not known."""
    name = (config.architectures or ["nothing"])[0]
    if name not in _FAMILIES:
        raise Refused(f"a model of the kind {name} cannot be written as GGUF, only {' and '.join(_FAMILIES)}")
    if config.hidden_act != "silu":
        raise Refused(f"the model computes with {config.hidden_act}, and llama.cpp's of this kind with silu only")
    if getattr(config, "use_sliding_window", False):
        raise Refused("the model attends through a sliding window, which llama.cpp's of this kind does not")
    return _FAMILIES[name]


def _add_architecture(writer: GGUFWriter, config: Any, arch: MODEL_ARCH) -> None:
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise Refused(f"the model stretches its positions ({rope['rope_type']}), which cannot be written as GGUF here")
    heads, width = config.num_attention_heads, config.hidden_size
    per_head = getattr(config, "head_dim", None) or width // heads
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(per_head)
    if per_head * heads != width:
        writer.add_key_length(per_head)
        writer.add_value_length(per_head)
