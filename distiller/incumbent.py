"""Owns who a new student of a task is measured against, and may go on from: the student that answers it, or would next.

Must not judge or train. That is the live one, else the canary, else the newest in shadow; none that was taken back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distiller.bundle import load_bundle
from distiller.holdings import learned
from proxy.errors import BadInput
from proxy.log import Log
from router.registry import CANARY, LIVE, SHADOW, STUDENT, candidates


@dataclass(frozen=True, slots=True)
class Incumbent:
    """One student with its bundle; `learned` are the exchanges in its weights, those of the one it grew from included.

    `broken` says why its bundle cannot be used; the rest is then empty.
    """

    id: str
    stage: str
    path: Path
    manifest: Mapping[str, Any]
    learned: frozenset[str]
    broken: str = ""


def incumbent(log: Log, task: str) -> Incumbent | None:
    """The task's, or None where it has no student."""
    known = [one for one in candidates(log, task) if one.kind == STUDENT]
    for stage in (LIVE, CANARY, SHADOW):
        for one in reversed(known):
            if one.stage == stage:
                return read(Path(one.bundle), one.id, stage)
    return None


def read(folder: Path, name: str, stage: str = "") -> Incumbent:
    """The student in a folder, every file of it checked."""
    try:
        bundle = load_bundle(folder)
    except BadInput as error:
        return Incumbent(name, stage, folder, {}, frozenset(), str(error))
    return Incumbent(bundle.id, stage, bundle.path, bundle.manifest, learned(bundle.path))
