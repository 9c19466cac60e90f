import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distiller.generate import generate
from distiller.merge import TOLERANCE, merge, weights
from proxy.errors import BadInput, Refused
from tests.distiller.exportable import Exportable, exportable
from tests.distiller.toy import build_toy

PROMPT = [{"role": "system", "content": ""}, {"role": "user", "content": "lamp 7 is amber"}]


@pytest.fixture
def made() -> Exportable:
    return exportable()


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_merged_folder_answers_alone_as_base_and_adapter_did(made: Exportable, tmp_path: Path) -> None:
    adapter = made.bundle.path / "adapter"
    assert 0 < merge(made.base, adapter, [PROMPT], tmp_path / "merged", 1) <= TOLERANCE
    asked = [
        [PROMPT[0], PROMPT[1] | {"content": f"lamp {n} is {colour}"}] for n in range(4) for colour in ("red", "lit")
    ]
    before = generate(made.base, adapter, asked, 8, 1, lambda *_: None)
    after = generate(tmp_path / "merged", None, asked, 8, 1, lambda *_: None)
    assert [one.text for one in after] == [one.text for one in before]
    assert len({one.text for one in after}) > 1
    assert [one.confidence for one in after] == pytest.approx([one.confidence for one in before], rel=0.1)


def test_the_same_student_gives_the_same_bytes_in_the_bases_own_format(made: Exportable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        merge(made.base, made.bundle.path / "adapter", [PROMPT], tmp_path / name, 1)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")
    held, base = load_file(tmp_path / "a" / "model.safetensors"), load_file(made.base / "model.safetensors")
    assert {name: (one.dtype, one.shape) for name, one in held.items()} == {
        name: (one.dtype, one.shape) for name, one in base.items()
    }
    assert weights(tmp_path / "a") == sum(one.numel() for one in base.values())
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= sums(tmp_path / "a").keys()


def test_a_bfloat16_base_gives_a_bfloat16_model(made: Exportable, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_toy(base, ["lamp is red"])
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    base = changed(base, tmp_path / "half", lambda _, one: one.bfloat16())
    merge(base, made.bundle.path / "adapter", [PROMPT], tmp_path / "merged", 1)
    assert {one.dtype for one in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def changed(folder: Path, to: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a folder of weights, each tensor changed."""
    shutil.copytree(folder, to)
    (file,) = to.glob("*.safetensors")
    save_file({name: change(name, one) for name, one in load_file(file).items()}, file, {"format": "pt"})
    return to


def test_a_merged_model_that_computes_otherwise_is_refused(made: Exportable, tmp_path: Path) -> None:
    """Logits so large that float32 cannot tell them to a thousandth: nothing is shown then, and nothing is claimed."""
    base = changed(made.base, tmp_path / "base", lambda name, one: one * 1e5 if name == "model.norm.weight" else one)
    with pytest.raises(Refused, match="a logit differs by"):
        merge(base, made.bundle.path / "adapter", [PROMPT], tmp_path / "merged", 1)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_no_numbers_is_refused(made: Exportable, tmp_path: Path) -> None:
    adapter = changed(made.bundle.path / "adapter", tmp_path / "adapter", lambda _, one: one * math.nan)
    with pytest.raises(Refused, match="cannot be merged"):
        merge(made.base, adapter, [PROMPT], tmp_path / "merged", 1)


def test_nothing_is_merged_that_nothing_could_show_to_be_right(made: Exportable, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no prompt left"):
        merge(made.base, made.bundle.path / "adapter", [], tmp_path / "merged", 1)
