import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller import export as module
from distiller.bundle import load_bundle, seal
from distiller.edge import read_served
from distiller.edge_check import Proof
from distiller.export import APART, FLOORS, MERGED, REPORT, Exported, export, in_words, passes
from distiller.gguf_file import KINDS, write_gguf
from proxy.errors import BadInput, Refused, Unavailable
from proxy.log import Log
from router.calibration import Calibration
from router.registry import Candidate
from tests.distiller.exportable import Exportable, exportable
from tests.router.conftest import TASK


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
    found = run(made, log, tmp_path, MERGED, *FLOORS)
    assert [(one.kind, one.passed, one.fresh) for one in found] == [(kind, True, True) for kind in (MERGED, *FLOORS)]
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
    assert {kind: (0.97 if "q4" in kind else 0.99) for kind in (*KINDS, f"q4_1{APART}")} == FLOORS


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
