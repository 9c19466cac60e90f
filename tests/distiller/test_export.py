import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from distiller import export as module
from distiller.bundle import load_bundle, seal
from distiller.compress import SCHEMES
from distiller.edge import read_served
from distiller.examples import render_prompt
from distiller.export import APART, FLOORS, MERGED, REPORT, Exported, export, in_words, passes
from distiller.gguf_file import KINDS, write_gguf
from distiller.proof import Asking, Messages, Proof, Reply
from distiller.settings import ExportSettings
from proxy.errors import BadInput, Refused, Unavailable
from proxy.log import Log
from router.calibration import Calibration
from router.registry import Candidate
from tests.distiller.exportable import COMPRESSOR, Exportable, exportable, needs_compressor
from tests.router.conftest import TASK

GGUF = (*KINDS, f"q4_1{APART}")


@pytest.fixture
def made() -> Exportable:
    return exportable()


@pytest.fixture
def log(made: Exportable) -> Iterator[Log]:
    log = made.log()
    yield log
    log.close()


def run(made: Exportable, log: Log, target: Path, *kinds: str, candidate: Candidate | None = None) -> list[Exported]:
    return export(log, made.settings, candidate or made.candidate, kinds, target, lambda *_: None)


def test_every_kind_is_made_proved_and_kept_beside_the_bundle(made: Exportable, log: Log, tmp_path: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in made.bundle.path.rglob("*"))
    found = run(made, log, tmp_path, MERGED, *GGUF)
    assert [(one.kind, one.passed, one.fresh) for one in found] == [(kind, True, True) for kind in (MERGED, *GGUF)]
    merged, *files = found
    assert merged.delta is not None
    assert (Path(str(merged.folder)) / "model.safetensors").stat().st_size == merged.size
    sizes = {one.kind: one.size for one in files}
    assert sizes["q4_0"] < sizes["q8_0"] < sizes["bf16"] < merged.size  # the toy is in float32
    assert sizes["q4_1"] < sizes["q4_1-lora"]
    assert sizes["q8_0"] / merged.bf16_size < 0.6
    for one in files:
        folder = Path(str(one.folder))
        told = json.loads((folder / REPORT).read_text())
        assert told["proof"]["rows"] == 30
        assert told["proof"]["kept"] >= told["proof"]["needed"] == FLOORS[one.kind]
        assert told["proof"]["calibration"]["knots"]
        assert read_served(folder).student == made.bundle.id
        names = {f"{made.bundle.id}-{one.kind}.gguf", "student.json", REPORT}
        names |= {f"{made.bundle.id}-adapter.gguf"} if one.kind.endswith(APART) else set()
        assert {path.name for path in folder.iterdir()} == names
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    assert load_bundle(made.bundle.path) == made.bundle
    assert sorted(path.stat().st_mtime_ns for path in made.bundle.path.rglob("*")) == before
    assert {path.name for path in (tmp_path / made.bundle.id).iterdir()} == {"merged", "gguf"}


def test_what_is_there_is_not_made_again(made: Exportable, log: Log, tmp_path: Path) -> None:
    first = run(made, log, tmp_path, "q8_0")
    seen: list[str] = []
    again = export(log, made.settings, made.candidate, ["q8_0"], tmp_path, lambda step, *_: seen.append(step))
    assert seen == []
    assert again == [replace(one, fresh=False, proof=again[0].proof) for one in first]
    both = run(made, log, tmp_path, "q8_0", "q4_0")
    assert [one.fresh for one in both] == [False, True]
    (file,) = Path(str(first[0].folder)).glob("*.gguf")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(BadInput, match="was changed since it was exported"):
        run(made, log, tmp_path, "q8_0")
    (file.parent / REPORT).unlink()
    with pytest.raises(BadInput, match="is no finished export"):
        run(made, log, tmp_path, "q8_0")


def test_a_file_that_lost_what_was_learned_is_refused_and_not_kept(
    made: Exportable, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mistake in our own writer would: here the adapter is forgotten."""
    monkeypatch.setattr(module, "write_gguf", lambda _, *rest: write_gguf(made.base, *rest))
    found, kept = run(made, log, tmp_path, "q8_0", MERGED)
    assert (found.passed, found.folder, kept.passed) == (False, None, True)
    assert in_words(found).startswith("q8_0 is refused: it keeps 0.00% of the student's score (0.0000 of 1.0000 on 30")
    assert "99% is needed" in in_words(found)
    assert {path.name for path in (tmp_path / made.bundle.id).iterdir()} == {"merged"}


@given(kind=st.sampled_from(sorted(FLOORS)), rows=st.integers(1, 400), data=st.data())
def test_a_file_passes_when_it_keeps_score_and_prompts(kind: str, rows: int, data: Any) -> None:
    student = data.draw(st.integers(1, rows)) / rows
    score, read = (data.draw(st.integers(0, rows)) for _ in range(2))
    calibration = Calibration((), None, None)
    proof = Proof(rows, 0, student, score / rows, 0, 0, 0, read, 0, 0, 1.0, 1.0, None, calibration)
    enough = score / rows / student >= FLOORS[kind]
    assert passes(proof, kind) == (enough and read >= FLOORS[kind] * rows)


def test_eight_bits_keep_99_per_cent_and_four_97() -> None:
    assert {kind: 0.97 if "4" in kind else 0.99 for kind in (*GGUF, *SCHEMES)} == FLOORS


def sealed(folder: Path, made: Exportable, files: dict[str, bytes], **manifest: Any) -> Candidate:
    source = folder / "source"
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    bundle = seal(source, folder / "students", {**made.bundle.manifest, **manifest})
    return replace(made.candidate, id=bundle.id, bundle=str(bundle.path))


def test_what_cannot_be_exported_says_why(made: Exportable, log: Log, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="somebody else's model"):
        run(made, log, tmp_path, "q8_0", candidate=replace(made.candidate, kind="hosted"))
    with pytest.raises(BadInput, match="no language model with an adapter"):
        run(made, log, tmp_path, "q8_0", candidate=sealed(tmp_path / "a", made, {"head.npz": b"x"}))
    adapter = {"adapter/adapter_config.json": b"{}"}
    gone = {**made.candidate.card, "base": str(tmp_path / "gone")}
    with pytest.raises(BadInput, match=r"is not at .*gone any more"):
        run(made, log, tmp_path, "q8_0", candidate=sealed(tmp_path / "b", made, adapter, card=gone))
    with pytest.raises(Refused, match="is not the base model that"):
        run(made, log, tmp_path, "q8_0", candidate=sealed(tmp_path / "c", made, adapter, base_sha256="0"))


def test_without_the_extra_only_merged_can_be_made(
    made: Exportable, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(Unavailable, match=r"pip install 'stillroom\[edge\]'"):
        run(made, log, tmp_path, MERGED, "q8_0")
    assert not list(tmp_path.iterdir())
    (merged,) = run(made, log, tmp_path, MERGED)
    assert merged.fresh


def test_without_golden_prompts_it_is_compared_on_the_holdout(made: Exportable, log: Log, tmp_path: Path) -> None:
    files = {
        path.relative_to(made.bundle.path).as_posix(): path.read_bytes()
        for path in made.bundle.path.rglob("*")
        if path.is_file() and path.name not in ("SHA256SUMS", "manifest.json")
    }
    candidate = sealed(tmp_path / "a", made, files, card={**made.candidate.card, "golden": []})
    (found,) = run(made, log, tmp_path, "q8_0", candidate=candidate)
    assert found.proof is not None
    assert (found.passed, found.proof["golden"], candidate.task) == (True, 0, TASK)


def for_vllm(made: Exportable, home: Path, compressor: str = "") -> Exportable:
    """The same student, with logs in another home."""
    return replace(made, settings=replace(made.settings, home=str(home), export=ExportSettings(compressor)))


def stood_in(monkeypatch: pytest.MonkeyPatch, answer: str) -> list[list[list[int]]]:
    """In place of llm-compressor and vLLM: a copy of what was merged, and an engine that always says the same.

    Returned is what there was to fit to, each time.
    """
    fitted = []

    def copied(_: str, merged: Path, scheme: str, rows: list[list[int]], folder: Path, *rest: object) -> None:
        fitted.append(rows)
        shutil.copytree(merged, folder, dirs_exist_ok=True)

    @contextmanager
    def asked(folder: Path, *_: object) -> Iterator[Asking]:
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def read(messages: Messages) -> list[int]:
            turns = [dict(one) for one in messages]
            return list(tokenizer(render_prompt(tokenizer, turns), add_special_tokens=False)["input_ids"])

        yield Asking(lambda _: Reply(answer, True, (-0.1, -0.1), 9, 3.0, 1, 2.0), read, lambda: 7)

    monkeypatch.setattr(module, "installed", lambda _: "0.14.0.1")
    monkeypatch.setattr(module, "compress", copied)
    monkeypatch.setattr(module, "vllm", asked)
    return fitted


def test_fewer_bits_for_vllm_pass_the_same_gate(
    made: Exportable, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = stood_in(monkeypatch, "stop")  # right for a third of the rows
    student = for_vllm(made, tmp_path / "home")
    found = run(student, log, tmp_path, *SCHEMES)
    assert [(one.kind, one.passed, one.folder) for one in found] == [(kind, False, None) for kind in SCHEMES]
    assert re.match(
        r"w4a16 is refused: it keeps 3\d\.\d\d% .* on 30 rows\) and reads 30 .*, and 97%", in_words(found[1])
    )
    assert not list((tmp_path / made.bundle.id).iterdir())
    assert [len(rows) for rows in fitted] == [0, made.bundle.manifest["trained"]["rows"]]
    rows, tokens = len(fitted[1]), sum(map(len, fitted[1]))
    assert found[0].compressed == {"llmcompressor": "0.14.0.1", "rows": 0, "tokens": 0}
    assert found[1].compressed == {"llmcompressor": "0.14.0.1", "rows": rows, "tokens": tokens}
    assert found[0].proof is not None
    assert (found[0].proof["peak_bytes"], found[0].proof["speed"]) == (7, 500.0)


def test_without_compressor_or_vllm_nothing_is_begun(
    made: Exportable, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match=r"export\.compressor is not set; .*'stillroom\[compress\]'"):
        run(made, log, tmp_path, "fp8")
    monkeypatch.setattr(module, "installed", lambda _: "0.14.0.1")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(Unavailable, match=r"vLLM is not installed: pip install 'stillroom\[serve-cpu\]'"):
        run(made, log, tmp_path, "w4a16")
    assert not list(tmp_path.iterdir())


def test_what_vllm_does_not_serve_is_not_kept(
    made: Exportable, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood_in(monkeypatch, "")

    @contextmanager
    def never(*_: object) -> Iterator[Asking]:
        raise Unavailable("the engine exited with code 1: ValueError: no kernel")
        yield

    monkeypatch.setattr(module, "vllm", never)
    student = for_vllm(made, tmp_path / "home")
    with pytest.raises(Unavailable, match="ValueError: no kernel"):
        run(student, log, tmp_path, "fp8")
    assert not list((tmp_path / made.bundle.id).iterdir())


@pytest.mark.loop
@needs_compressor
@pytest.mark.timeout(900)
def test_fewer_bits_are_made_and_served_by_the_real_vllm(made: Exportable, log: Log, tmp_path: Path) -> None:
    student = for_vllm(made, tmp_path / "home", COMPRESSOR)
    merged, *found = run(student, log, tmp_path, MERGED, *SCHEMES)
    assert [(one.kind, one.passed, one.fresh) for one in found] == [(kind, True, True) for kind in SCHEMES]
    assert found[1].size < found[0].size < merged.size
    for one in found:
        assert one.folder == str(tmp_path / made.bundle.id / "vllm" / one.kind)
        assert one.compressed is not None
        assert one.compressed["rows"] == (made.bundle.manifest["trained"]["rows"] if one.kind == "w4a16" else 0)
        proof = one.proof or {}
        assert (proof["rows"], proof["read_alike"]) == (30, 30)
        assert proof["kept"] >= proof["needed"] == FLOORS[one.kind]
        names = {path.name for path in Path(one.folder).iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", REPORT} <= names
    again = run(student, log, tmp_path, *SCHEMES)
    assert [one.fresh for one in again] == [False, False]
