"""Owns which students are tried for a task, in what order and for how long, and which of them is the best.

Must not know how a student is made, nor what becomes of the best.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from distiller.ab import Trial, trial, write
from distiller.adapter_student import ADAPTER, adapter_student, soft_student
from distiller.cascade import KIND as CASCADE
from distiller.cascade_student import cascade_student
from distiller.engines import SMALL, VLLM
from distiller.explained_student import EXPLAINED, explained_student
from distiller.label_student import label_student
from distiller.labels import KIND as LABELS
from distiller.proposal import Proposal
from distiller.recipes import Kind
from distiller.settings import DistillerSettings
from distiller.small_students import encoder_student, head_student
from proxy.errors import Refused, Unavailable

# The cheapest to serve first.
KINDS = (
    Kind("head", SMALL, head_student, of_base=False), Kind("encoder", SMALL, encoder_student, of_base=False),
    Kind(CASCADE, SMALL, cascade_student), Kind(LABELS, SMALL, label_student), Kind(ADAPTER, VLLM, adapter_student),
    Kind("soft", VLLM, soft_student, ADAPTER), Kind(EXPLAINED, VLLM, explained_student, ADAPTER),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tried:
    """One student that was tried on the task; `why` it gave none, else its mean verdict and proposed coverage.

    `score` and `coverage` are of the holdout, in [0, 1]; `base` and `rank` are those of a language model. `ab` is how
    it did against the kind it is a way of making.
    """

    kind: str
    score: float | None = None
    coverage: float | None = None
    seconds: float | None = None
    why: str = ""
    base: str | None = None
    rank: int | None = None
    ab: Trial | None = None


class Try(NamedTuple):
    """A kind of student, and the settings by which it can be made again."""

    kind: Kind
    options: DistillerSettings

    @property
    def grown(self) -> dict[str, Any]:
        """The base and rank of a language model."""
        return {"base": self.options.base, "rank": self.options.rank} if self.kind.of_base else {}

    def named(self, kind: str) -> tuple[Any, ...]:
        """What tells a try from the others, were it of that kind."""
        return (kind, *self.grown.values())


Make = Callable[[Try, Path], Proposal]
"""Makes the student in a folder, which is there and empty; Refused and Unavailable where the task has none such."""


def tries(options: DistillerSettings) -> list[Try]:
    """What is tried, the cheapest to serve first; a language model with every base and rank that was named."""
    found = []
    for kind in (one for one in KINDS if one.name in options.students):
        if not kind.of_base:
            found.append(Try(kind, options))
            continue
        for base, rank in product((options.base, *options.bases), (options.rank, *options.ranks)):
            found.append(Try(kind, replace(options, base=base, rank=rank, bases=(), ranks=())))
    return found


def best(options: DistillerSettings, scratch: Path, make: Make) -> tuple[Proposal, list[Tried]]:
    """The student that would answer most, the cheapest of equals; Refused, with every reason, where there is none.

    One that would answer `enough_coverage` ends the search: what is still tried are other ways of making that one.
    """
    proposals, tried, all_of_them = dict[tuple[Any, ...], Proposal](), list[Tried](), tries(options)
    ends = time.perf_counter() + (options.hours * 3600 or math.inf)
    enough: tuple[Any, ...] | None = None
    for number, one in enumerate(all_of_them):
        rival = one.named(one.kind.against)
        if enough and rival != enough:
            continue
        started = time.perf_counter()
        if proposals and started >= ends:
            tried.append(Tried(one.kind.name, why=f"not begun within {options.hours:g} hours", **one.grown))
            continue
        folder = scratch / str(number)
        folder.mkdir()
        try:
            made = make(one, folder)
        except (Refused, Unavailable) as error:
            if len(all_of_them) == 1:
                raise
            tried.append(Tried(one.kind.name, why=str(error), **one.grown))
            continue
        ab = trial(proposals[rival], made, options.seed) if rival in proposals else None
        proposals[one.named(one.kind.name)] = made
        seconds = time.perf_counter() - started
        tried.append(Tried(one.kind.name, made.score, made.coverage, seconds, **one.grown, ab=ab))
        if made.coverage >= options.enough_coverage:
            enough = rival if one.kind.against else one.named(one.kind.name)
    if not proposals:
        raise Refused("; ".join(f"{one.kind}: {one.why}" for one in tried))
    return _winner(proposals, tried), tried


def _winner(proposals: Mapping[tuple[Any, ...], Proposal], tried: Sequence[Tried]) -> Proposal:
    """What lost an A/B is out, whatever it would cover; the winner has the outcome of each in its folder."""
    trials = [(one.ab, (one.base, one.rank)) for one in tried if one.ab]
    lost = {(ab.one if ab.kept else ab.other, *grown) for ab, grown in trials}
    left = (one for name, one in proposals.items() if name not in lost)
    best = max(left, key=lambda one: (one.coverage, one.score))
    write(best.folder, [ab for ab, _ in trials])
    return best
