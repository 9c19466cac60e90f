"""Owns what a student keeps of exchanges beside its weights: the list of them, the holdout's answers, golden prompts.

The list stays, being all that can say whom the weights may remember; ids of exchanges that are gone say nothing else.
Answers and prompts can be cut out of a sealed student. Must not know why they should be.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distiller.bundle import MANIFEST, amend, read_manifest
from proxy.errors import BadInput
from router.prompt import student_messages

_LINEAGE, _HOLDOUT = "lineage.json", "holdout.jsonl"


@dataclass(frozen=True, slots=True)
class Holding:
    """What one student keeps of given exchanges: rows it learned from, holdout rows and golden prompts it still has."""

    student: str
    learned: int
    judged: int
    golden: int


def spoken(request: str) -> str | None:
    """What tells a golden prompt's conversation, without its instructions; None for what no student is shown."""
    try:
        return _conversation(student_messages(json.loads(request)["messages"], frozenset()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadInput):
        return None


def learned(folder: Path) -> frozenset[str]:
    """The exchanges a student's weights may remember: its own, and those of the student it was trained on from."""
    lineage = json.loads((folder / _LINEAGE).read_text(encoding="utf-8"))
    return frozenset([*lineage["exchanges"], *lineage.get("inherited", [])])


def cut(students: Path, exchanges: frozenset[str], conversations: frozenset[str]) -> list[Holding]:
    """Cut the exchanges out of every student's folder; one holding for each that ever had to do with any of them."""
    found = [_cut(folder, exchanges, conversations) for folder in sorted(students.glob("*/")) if _finished(folder)]
    return [holding for holding in found if holding.learned or holding.judged or holding.golden]


def without(card: Mapping[str, Any], conversations: frozenset[str]) -> dict[str, Any]:
    """A student's card without the golden prompts that are among the conversations."""
    golden = [one for one in card.get("golden", []) if _conversation(one["messages"]) not in conversations]
    return {**card, "golden": golden} if "golden" in card else dict(card)


def _cut(folder: Path, exchanges: frozenset[str], conversations: frozenset[str]) -> Holding:
    manifest = read_manifest(folder)
    card = manifest.get("card", {})
    fresh = without(card, conversations)
    golden = len(card.get("golden", [])) - len(fresh.get("golden", []))
    lines = (folder / _HOLDOUT).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    kept = [line for line in lines if not line or json.loads(line)["exchange"] not in exchanges]
    judged = len(lines) - len(kept)
    if judged or golden:
        content = "".join(line + "\n" for line in kept if line).encode()
        amend(folder, _HOLDOUT, content, {**manifest, "card": fresh})
    return Holding(folder.name, len(exchanges & learned(folder)), judged, golden)


def _finished(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (MANIFEST, _LINEAGE, _HOLDOUT))


def _conversation(messages: Iterable[Mapping[str, str]]) -> str:
    """The digest of all but the instructions, of which each student is shown other lines."""
    said = [[message["role"], message["content"]] for message in messages if message["role"] != "system"]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
