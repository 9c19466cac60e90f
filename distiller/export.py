"""Owns turning a student into artefacts for other engines: merged safetensors, and smaller ones that were proved.

exports/student-3fa9.../
    merged/          the model in one folder, for any engine that reads safetensors; export.json in it
    gguf/q8_0/       one file for llama.cpp, student.json for serving it, and export.json: what it was proved with
    gguf/q4_1-lora/  the base in one file and the adapter in another
    vllm/fp8/        fewer bits a weight, for vLLM: a folder of safetensors with its export.json

The student's own bundle is read and never changed. An artefact is made under a scratch name and renamed once it passed,
so whatever has its name is fit to use; what was exported before is not made again. Must not know the command line.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import AutoTokenizer

from distiller.base import base_identity
from distiller.bundle import Bundle, load_bundle
from distiller.compress import FITTED, SCHEMES, compress, installed, training_rows
from distiller.edge import CARD, INSTALL, Running, Served, sums
from distiller.edge_check import llama
from distiller.gguf_adapter import write_adapter
from distiller.gguf_file import write_gguf
from distiller.merge import merge, weights
from distiller.proof import Case, Proof, Serving, cases, prove
from distiller.scoring import scoring
from distiller.settings import Settings
from distiller.signature import verify
from distiller.vllm_check import vllm
from proxy.errors import BadInput, Refused, Unavailable
from proxy.log import Log
from router.prompt import student_messages
from router.registry import STUDENT, Candidate
from router.settings import TaskSettings

REPORT = "export.json"
MERGED = "merged"
# Of the student's score on the same rows; what keeps less is refused.
FLOORS: Mapping[str, float] = MappingProxyType(
    {"bf16": 0.99, "q8_0": 0.99, "q4_0": 0.97, "q4_1": 0.97, "q4_1-lora": 0.97, "fp8": 0.99, "w4a16": 0.97}
)
APART = "-lora"  # How a kind ends that keeps the adapter apart: see `distiller.gguf_adapter`.
_WEIGHTS = ("*.gguf", "*.safetensors")
_COMPARED = 8  # prompts that the merged model is compared on
# Told what is being done, how far it is and of how much.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """One artefact: its kind (`merged` or of `FLOORS`), folder, size, what it showed, and whether it passed.

    `size` and `bf16_size` are bytes, the second of the same weights in bfloat16. `fresh` is false where it was there
    already; a refused one has no folder. `delta` is the merged model's largest difference of a logit, `compressed` what
    made one for vLLM: the version of llm-compressor, and how many rows and tokens it was fitted to.
    """

    kind: str
    folder: str | None
    size: int
    bf16_size: int
    passed: bool
    fresh: bool
    delta: float | None = None
    proof: Mapping[str, Any] | None = None
    compressed: Mapping[str, Any] | None = None


def export(
    log: Log, settings: Settings, candidate: Candidate, kinds: Sequence[str], target: Path, on_progress: Report
) -> list[Exported]:
    """Make the artefacts of `kinds` below `target`, in that order; those that keep too little are told, not kept.

    BadInput for what is no such student, Refused where nothing can be proved, Unavailable where what makes or serves a
    kind is not installed, or does not do so on this machine.
    """
    proved = [kind for kind in kinds if kind != MERGED]
    _needed(settings, proved)
    bundle, base = _student(candidate)
    verify(bundle.path, settings.signing)
    place = target / bundle.id
    known = {kind: found for kind in kinds if (found := _known(place, kind)) is not None}
    if len(known) == len(kinds):
        return [known[kind] for kind in kinds]
    place.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=place))
    try:
        making = _Making(log, settings, candidate, bundle, place, scratch, on_progress)
        merged = making.merged(base)
        made = {kind: making.proved(kind, merged.bf16_size) for kind in proved if kind not in known}
        if MERGED in kinds and MERGED not in known:
            made[MERGED] = making.keep(scratch / MERGED, MERGED, merged)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [known.get(kind) or made[kind] for kind in kinds]


@dataclass(frozen=True, slots=True)
class _Making:
    log: Log
    settings: Settings
    candidate: Candidate
    bundle: Bundle
    place: Path
    scratch: Path
    on_progress: Report

    def merged(self, base: Path) -> Exported:
        """The merged folder in the scratch; the others are made from it, whether it is wanted itself or not."""
        card = self.bundle.manifest["card"]
        self.on_progress("merging", 0, 1)
        prompts = [one["messages"] for one in card["golden"]] or [
            student_messages(row.request["messages"], frozenset(card["static"])) for row in self._cases()[0]
        ]
        folder = self.scratch / MERGED
        delta = merge(base, self.bundle.path / "adapter", prompts[:_COMPARED], folder, self._threads())
        self.on_progress("merging", 1, 1)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return Exported(MERGED, None, size, 2 * weights(folder), True, True, delta)

    def proved(self, kind: str, bf16_size: int) -> Exported:
        """One artefact for llama.cpp or vLLM, proved; it is at its place afterwards unless it is refused."""
        folder = self.scratch / kind
        folder.mkdir()
        self.on_progress(f"writing {kind}", 0, 1)
        if kind in SCHEMES:
            compressed, serving = self._compressed(folder, kind)
        else:
            compressed, serving = None, self._written(folder, kind)
        self.on_progress(f"writing {kind}", 1, 1)
        size = sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
        proof = self._proof(serving, kind)
        told = asdict(proof) | {"kept": proof.kept, "needed": FLOORS[kind]}
        found = Exported(kind, None, size, bf16_size, passes(proof, kind), True, None, told, compressed)
        return self.keep(folder, kind, found) if found.passed else found

    def keep(self, folder: Path, kind: str, found: Exported) -> Exported:
        """Give a finished artefact its name; where another process was faster, its artefact stays."""
        target = _place(self.place, kind)
        told = asdict(found) | {"folder": None, "sums": _sums(folder)}
        (folder / REPORT).write_text(json.dumps(told, indent=1), encoding="utf-8")
        for path in (folder, *folder.iterdir()):  # safetensors writes for the owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        target.parent.mkdir(exist_ok=True)
        if _known(self.place, kind) is None:
            folder.rename(target)
        return _known(self.place, kind, fresh=True) or found

    def _compressed(self, folder: Path, kind: str) -> tuple[dict[str, Any], Serving]:
        """A folder for vLLM, what it was made with, and what serves it."""
        compressor = self.settings.export.compressor
        made = {"llmcompressor": installed(compressor), "rows": 0, "tokens": 0}
        rows: list[list[int]] = []
        if kind in FITTED:
            rows = training_rows(self.log, self.bundle, self._tokenizer())
            made |= {"rows": len(rows), "tokens": sum(map(len, rows))}
        log = self.settings.folder / "logs" / "compressor.log"
        compress(compressor, self.scratch / MERGED, kind, rows, folder, self._threads(), log)
        return made, partial(vllm, folder, self.settings, self.bundle.manifest["card"])

    def _written(self, folder: Path, kind: str) -> Serving:
        """The files of one kind for llama.cpp, the merged model or base and adapter apart; what serves them."""
        name, card = self.bundle.id, self.bundle.manifest["card"]
        file, adapter = f"{name}-{kind}.gguf", ""
        if kind.endswith(APART):
            adapter = f"{name}-adapter.gguf"
            write_gguf(Path(card["base"]), kind.removesuffix(APART), name, folder / file)
            write_adapter(Path(card["base"]), self.bundle.path / "adapter", name, folder / adapter)
        else:
            write_gguf(self.scratch / MERGED, kind, name, folder / file)
        files = [file, adapter] if adapter else [file]
        served = Served(name, file, adapter, sums(folder, files), tuple(card["static"]), card["max_tokens"])
        (folder / CARD).write_text(json.dumps(asdict(served), indent=1), encoding="utf-8")
        edge = self.settings.edge
        return partial(llama, folder, Running(edge.context, edge.threads))

    def _proof(self, serving: Serving, kind: str) -> Proof:
        rows, gone = self._cases()
        declared = TaskSettings(
            aliases=self.bundle.manifest["card"]["aliases"], sets=tuple(self.bundle.manifest["card"]["sets"])
        )
        with scoring(self.log, self.settings, self.candidate.task, self.candidate.evaluator, declared) as score:
            return prove(
                serving, self.bundle, rows, gone, score, self._tokenizer(), partial(self.on_progress, f"asking {kind}")
            )

    def _cases(self) -> tuple[list[Case], int]:
        return cases(self.log, self.bundle)

    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.scratch / MERGED)

    def _threads(self) -> int:
        return self.settings.distiller.threads or os.cpu_count() or 1


def passes(proof: Proof, kind: str) -> bool:
    """Whether the artefact keeps enough of the score, and reads what it is asked as the student did."""
    return proof.kept >= FLOORS[kind] and proof.read_alike >= FLOORS[kind] * proof.rows


def in_words(found: Exported) -> str:
    """Why an artefact was refused, with the figures."""
    p = found.proof or {}
    return (
        f"{found.kind} is refused: it keeps {p['kept']:.2%} of the student's score ({p['score']:.4f} of "
        f"{p['student']:.4f} on {p['rows']} rows) and reads {p['read_alike']} of the prompts as the student did, and "
        f"{p['needed']:.0%} is needed of both"
    )


def _student(candidate: Candidate) -> tuple[Bundle, Path]:
    if candidate.kind != STUDENT:
        raise BadInput(f"{candidate.id} is somebody else's model: only a student can be exported")
    bundle = load_bundle(Path(candidate.bundle))
    if not (bundle.path / "adapter").is_dir():
        raise BadInput(f"{candidate.id} is no language model with an adapter: there is nothing to merge or to quantise")
    base = Path(bundle.manifest["card"]["base"])
    if not base.is_dir():
        raise BadInput(f"the base model of {candidate.id} is not at {base} any more: put it back")
    if base_identity(base) != bundle.manifest["base_sha256"]:
        raise Refused(f"{base} is not the base model that {candidate.id} was trained on: put that one back")
    return bundle, base


def _needed(settings: Settings, kinds: Sequence[str]) -> None:
    """Unavailable, with how to install it, where one of these kinds could not be made or served."""
    if any(kind not in SCHEMES for kind in kinds) and importlib.util.find_spec("xllamacpp") is None:
        raise Unavailable(INSTALL)
    if any(kind in SCHEMES for kind in kinds):
        installed(settings.export.compressor)
        if importlib.util.find_spec("vllm") is None:
            raise Unavailable(f"vLLM is not installed: pip install 'stillroom[serve-{settings.serving.device}]'")


def _place(place: Path, kind: str) -> Path:
    return place / MERGED if kind == MERGED else place / ("vllm" if kind in SCHEMES else "gguf") / kind


def _known(place: Path, kind: str, fresh: bool = False) -> Exported | None:
    """What is there already; BadInput where it is not as it was exported."""
    folder = _place(place, kind)
    if not folder.exists():
        return None
    if not (folder / REPORT).is_file():
        raise BadInput(f"{folder} is no finished export: remove it")
    told = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if told.pop("sums") != _sums(folder):
        raise BadInput(f"{folder} was changed since it was exported: remove it and export again")
    return Exported(**told | {"folder": str(folder), "fresh": fresh})


def _sums(folder: Path) -> dict[str, str]:
    return sums(folder, sorted(path.name for path in folder.iterdir() if path.name != REPORT))
