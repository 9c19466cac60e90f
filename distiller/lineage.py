"""Owns the way back from a student to the exchanges it learned from: traced one by one, and trained from them again.

Must not know how students are made. A rebuilt student is thrown away: what counts is whether it is the same, which its
name says, being a digest of all its files.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distiller.ab import RESULT
from distiller.adapter_student import ADAPTER
from distiller.base import base_identity
from distiller.bundle import Bundle, listed, load_bundle, seal
from distiller.dataset import Dataset, again
from distiller.explained_student import RATIONALES
from distiller.incumbent import read
from distiller.proposal import HOLDOUT, LINEAGE, propose, report_data
from distiller.rationales import kept
from distiller.recipes import Report
from distiller.scoring import Answered, Score, scoring
from distiller.settings import DistillerSettings, Settings
from distiller.terms import Terms
from distiller.tries import KINDS
from proxy.errors import BadInput, Refused
from proxy.log import Log
from router.coverage import Plan
from router.evaluators import JUDGE
from router.settings import TaskSettings

_HELD = """
SELECT count(*), min(ts), max(ts) FROM exchanges WHERE id IN (SELECT unnest(CAST(? AS VARCHAR[])))
"""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a student comes from: the exchanges it learned from and was judged on, and how many the log still holds."""

    student: str
    task: str
    kind: str
    snapshot: int
    base_sha256: str
    trained: Sequence[str]
    """The rows of its window; `inherited` are those only the student it went on from (`parent`) learned from."""
    judged: Sequence[str]
    held: int
    first: str | None
    """When the earliest of those held was asked, `last` the latest; ISO 8601."""
    last: str | None
    parent: str | None
    inherited: Sequence[str]
    terms: Sequence[Terms]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A student trained again: `same` if every file is, else the names of those that `differ`.

    Where an erased user's rows were cut out of its holdout the files are compared as they are now.
    """

    student: str
    rebuilt: str
    same: bool
    differ: Sequence[str]


def lineage(log: Log, bundle: Bundle) -> Lineage:
    """Traced through the bundle's own files to the log."""
    trained, judged = _exchanges(bundle)
    manifest, told = bundle.manifest, _lineage(bundle)
    inherited = told.get("inherited", [])
    ((held, first, last),) = log.query(_HELD, [[*trained, *inherited, *judged]])
    kind = manifest.get("kind", ADAPTER)
    return Lineage(
        bundle.id, manifest["task"], kind, manifest["snapshot"], manifest["base_sha256"], trained, judged, held,
        first and first.isoformat(), last and last.isoformat(), told.get("parent"), inherited, _terms(manifest),
    )  # fmt: skip


def rebuild(log: Log, settings: Settings, bundle: Bundle, on_progress: Report) -> Rebuilt:
    """Train the student again from its exchanges, with the settings it was made with, and compare every file.

    Refused where exchanges are gone or the base model is another one now. What a judge said of the same answer counts
    again; it is not asked twice. Nor is what lost an A/B made again: the outcome is taken over as it stands.
    """
    manifest = bundle.manifest
    data, options = _again(log, settings, bundle), DistillerSettings(**_tuples(manifest["settings"]))
    if (grown := Path(manifest["card"]["base"])).is_dir():
        _same_base(grown, bundle)  # Nobody trains for an hour to learn that it is another one.
    (kind,) = (one for one in KINDS if one.name == manifest.get("kind", ADAPTER))
    then = replace(settings, distiller=options)
    with scoring(log, then, data.task, data.evaluator, data.declared) as now:
        score = _remembered(bundle) if data.evaluator == JUDGE else now
        settings.students.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".rebuilding-", dir=settings.students))
        try:
            folder = scratch / kind.name
            folder.mkdir()
            made = propose(kind, data, then, folder, score, Plan(), on_progress).made
            _same_base(made.base, bundle)
            report_data(data, folder)
            if (bundle.path / RESULT).exists():
                shutil.copy(bundle.path / RESULT, folder)
            fresh = seal(folder, scratch / "sealed", manifest)
            differ = _differing(bundle.path, fresh.path)
            return Rebuilt(bundle.id, fresh.id, not differ, differ)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def student_of(settings: Settings, name: str) -> Bundle:
    """The student's bundle, whole and unchanged; BadInput where there is none of this name."""
    folder = settings.students / name
    if not folder.is_dir():
        raise BadInput(f"there is no student {name!r} in {settings.students}: `stillroom status` names those there are")
    return load_bundle(folder)


def _same_base(base: Path, bundle: Bundle) -> None:
    if base_identity(base) != bundle.manifest["base_sha256"]:
        raise Refused(f"the base model at {base} is not the one {bundle.id} grew from")


def _lineage(bundle: Bundle) -> dict[str, Any]:
    return dict(json.loads((bundle.path / LINEAGE).read_text(encoding="utf-8")))


def _terms(manifest: Mapping[str, Any]) -> tuple[Terms, ...]:
    return tuple(Terms(**one) for one in manifest.get("terms", []))


def _exchanges(bundle: Bundle) -> tuple[list[str], list[str]]:
    trained = _lineage(bundle)["exchanges"]
    lines = (bundle.path / HOLDOUT).read_text(encoding="utf-8").splitlines()
    return trained, [json.loads(line)["exchange"] for line in lines]


def _again(log: Log, settings: Settings, bundle: Bundle) -> Dataset:
    """With the student that it went on from, where it did; Refused where that one is gone or was changed."""
    manifest, card = bundle.manifest, bundle.manifest["card"]
    parent = _lineage(bundle).get("parent")
    before = read(settings.students / parent, parent) if parent else None
    if before and before.broken:
        raise Refused(f"{bundle.id} went on from {parent}, which cannot be read: {before.broken}")
    declared = TaskSettings(
        evaluator=manifest["evaluator"], aliases=card["aliases"], sets=tuple(card["sets"]),
        first_tokens=card["first_tokens"],
    )  # fmt: skip
    data = again(log, manifest["task"], manifest["snapshot"], *_exchanges(bundle), manifest["evaluator"], declared)
    told = bundle.path / RATIONALES
    names = json.loads(told.read_text(encoding="utf-8")) if told.exists() else []
    return replace(data, incumbent=before, terms=_terms(manifest), rationales=kept(log, names) if names else {})


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows only lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def _remembered(bundle: Bundle) -> Score:
    lines = (bundle.path / HOLDOUT).read_text(encoding="utf-8").splitlines()
    said = {(line["exchange"], line["text"]): line["verdict"] for line in map(json.loads, lines)}

    def score(answers: Sequence[Answered]) -> list[float]:
        return [said.get((one.exchange, one.other), 0.0) for one in answers]

    return score


def _differing(one: Path, other: Path) -> list[str]:
    """Files, by name, that are not in both or not the same."""
    ours, theirs = listed(one), listed(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
