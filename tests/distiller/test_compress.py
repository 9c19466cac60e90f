import json
import stat
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from distiller.compress import INSTALL, MOST_ROWS, compress, installed, training_rows
from distiller.proposal import HOLDOUT
from proxy.errors import Refused, Unavailable
from tests.distiller.exportable import COMPRESSOR, Exportable, exportable, needs_compressor
from tests.logs import migrated

# As `compressor.py` is called: $3 the model, $4 the scheme, $5 the rows, $6 the folder, $7 the threads.
WRITES = (
    'printf "%s %s " "$4" "$7" > "$6/model.safetensors"; cat "$5" >> "$6/model.safetensors"; env > "$6/env"; ls -l "$5"'
)
FAILS = 'echo "ValueError: too few rows"; echo "RuntimeError: out of memory"; echo "   ^^^" >&2; exit 3'


def python(folder: Path, does: str) -> str:
    """A stand-in for the Python of another environment: it tells a version, and compresses by these words of sh."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\nif [ "$2" = -c ]; then echo 0.14.0.1; exit; fi\n{does}\n')
    file.chmod(stat.S_IRWXU)
    return str(file)


def merged(folder: Path) -> Path:
    made = folder / "merged"
    made.mkdir()
    for name in ("model.safetensors", "config.json", "export.json", "tokenizer.json", "chat_template.jinja"):
        (made / name).write_text(f"merged {name}")
    return made


def run(folder: Path, does: str, rows: list[list[int]]) -> Path:
    target = folder / "scratch" / "w4a16"
    target.mkdir(parents=True)
    compress(python(folder, does), merged(folder), "w4a16", rows, target, 3, folder / "logs" / "compressor.log")
    return target


@pytest.fixture
def made() -> Exportable:
    return exportable()


def test_without_a_compressor_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"^export\.compressor is not set; .*pip install 'stillroom\[compress\]'"):
        installed("")
    with pytest.raises(Unavailable, match=rf"^export\.compressor {tmp_path}/none cannot be run \(No such file"):
        installed(str(tmp_path / "none"))
    with pytest.raises(Unavailable) as raised:
        installed(sys.executable)  # Ours, where it cannot be.
    assert str(raised.value) == f"export.compressor {sys.executable} has no llm-compressor; {INSTALL}"
    assert installed(python(tmp_path, "exit 1")) == "0.14.0.1"


def test_the_other_python_gets_model_scheme_and_rows_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    folder = run(tmp_path, WRITES, [[1, 2], [3]])
    assert (folder / "model.safetensors").read_text() == "w4a16 3 [[1, 2], [3]]"
    environment = (folder / "env").read_text()
    assert "sk-secret" not in environment
    assert "HF_HUB_OFFLINE=1" in environment
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "env", "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    assert (folder / "tokenizer.json").read_text() == "merged tokenizer.json"
    assert [path.name for path in folder.parent.iterdir()] == ["w4a16"]  # recorded words are left nowhere
    assert "rows.json" in (tmp_path / "logs" / "compressor.log").read_text()


def test_what_it_said_when_it_failed_is_told_and_where_the_rest_is(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "compressor.log"
    with pytest.raises(Unavailable) as raised:
        run(tmp_path, FAILS, [])
    assert str(raised.value) == f"llm-compressor failed with code 3: RuntimeError: out of memory (see {log})"
    assert "too few rows" in log.read_text()
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["w4a16"]


def test_rows_are_what_the_student_read_in_training_and_never_of_its_holdout(made: Exportable) -> None:
    log = made.log()
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    rows = training_rows(log, made.bundle, tokenizer)
    lines = (made.bundle.path / HOLDOUT).read_text().splitlines()
    judged = {
        log.query("SELECT request FROM exchanges WHERE id = ?", [json.loads(line)["exchange"]])[0][0] for line in lines
    }
    words = {json.loads(request)["messages"][-1]["content"] for request in judged}
    read = [tokenizer.decode(ids) for ids in rows]
    assert len(rows) == made.bundle.manifest["trained"]["rows"] <= MOST_ROWS
    assert all(text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nlamp ") for text in read)
    assert all(text.endswith(("stop<|im_end|>", "wait<|im_end|>", "go<|im_end|>")) for text in read)
    assert not any(f"{said}<|im_end|>" in text for text in read for said in words)
    log.close()


@given(most=st.integers(1, 130))
@settings(deadline=None, max_examples=20)
def test_at_most_so_many_rows_are_taken_evenly_over_time(most: int) -> None:
    made = exportable()
    log = made.log()
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    every, some = (training_rows(log, made.bundle, tokenizer, n) for n in (10_000, most))
    log.close()
    assert len(some) == min(most, len(every))
    places = [every.index(row) for row in some]
    assert places[0] == 0
    gaps = {later - earlier for earlier, later in pairwise(places)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert min(gaps, default=1) > 0


def test_a_student_whose_exchanges_are_gone_cannot_be_fitted_to_them(made: Exportable, tmp_path: Path) -> None:
    log = migrated(tmp_path)
    with pytest.raises(Refused, match=rf"none of the \d+ exchanges that {made.bundle.id} learned from is in the log"):
        training_rows(log, made.bundle, AutoTokenizer.from_pretrained(made.base))
    log.close()


@pytest.mark.loop
@needs_compressor
@pytest.mark.timeout(900)
def test_llm_compressor_gives_the_same_weights_twice(made: Exportable, tmp_path: Path) -> None:
    log = made.log()
    rows = training_rows(log, made.bundle, AutoTokenizer.from_pretrained(made.base), 16)
    log.close()
    for scheme in ("fp8", "w4a16"):
        folders = [tmp_path / f"{scheme}-{turn}" for turn in range(2)]
        for folder in folders:
            folder.mkdir()
            compress(COMPRESSOR, made.base, scheme, rows if scheme == "w4a16" else [], folder, 1, tmp_path / "log")
        ours, again = ((folder / "model.safetensors").read_bytes() for folder in folders)
        assert ours == again
        told = json.loads((folders[0] / "config.json").read_text())["quantization_config"]
        assert told["quant_method"] == "compressed-tensors"
        assert told["ignore"] == ["lm_head"]
        (group,) = told["config_groups"].values()
        assert group["weights"]["num_bits"] == {"fp8": 8, "w4a16": 4}[scheme]
        assert (group["input_activations"] is None) == (scheme == "w4a16")
        assert len(ours) < (made.base / "model.safetensors").stat().st_size
