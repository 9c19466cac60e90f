"""Owns going on from the student before: whether its adapter fits, and which rows the next one is trained on.

Trained are all rows the student before has not learned, and of those it has enough for `replay_share` of the whole: a
student shown nothing but the new forgets the old (McCloskey and Cohen 1989, "Catastrophic interference in connectionist
networks"). They are drawn in equal steps through the older rows in order of label and time, from a start that the seed
gives, so every label and every stretch of time has its share of them to within one row (systematic sampling: Cochran
1977, "Sampling techniques", chapter 8). Must not train.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distiller.base import base_identity
from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.incumbent import Incumbent
from distiller.settings import DistillerSettings
from router.evaluators import normalise

ADAPTER = "adapter"
PREVIOUS = "previous"


@dataclass(frozen=True, slots=True)
class Start:
    """What a training begins with: an adapter of `parent`, or the base (no parent), and `why` where it had to be that.

    `rows` are those to train on, in order of time; `replayed` of them are older ones.
    """

    rows: Sequence[Recorded]
    parent: Incumbent | None = None
    replayed: frozenset[str] = frozenset()
    why: str = ""

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter to go on from."""
        return self.parent.path / ADAPTER if self.parent else None


def start_of(data: Dataset, base: Path, options: DistillerSettings) -> Start:
    """Where the training of an adapter starts, by `distiller.init`."""
    if options.init != PREVIOUS:
        return Start(data.train)
    before = data.incumbent
    if before is None:
        return Start(data.train, why="the task has no student to go on from")
    if why := before.broken or misfit(before, base, options):
        return Start(data.train, why=f"{before.id} cannot be gone on from: {why}")
    new = [row for row in data.train if row.exchange_id not in before.learned]
    old = [row for row in data.train if row.exchange_id in before.learned]
    count = needed(len(new), options.replay_share)
    if not new:
        return Start(data.train, why=f"{before.id} has learned every row already")
    if count > len(old):
        said = f"within distiller.max_rows are {len(old)} older rows, and {count} are needed beside {len(new)} new ones"
        return Start(data.train, why=said)
    strata = [normalise(row.answer) if data.evaluator == "label" else "" for row in old]
    again = {old[index].exchange_id for index in drawn(strata, count, options.seed)}
    rows = [row for row in data.train if row.exchange_id not in before.learned or row.exchange_id in again]
    return Start(rows, before, frozenset(again))


def misfit(before: Incumbent, base: Path, options: DistillerSettings) -> str:
    """Why its adapter is not of the shape that is to be trained, or nothing."""
    place = before.path / ADAPTER / "adapter_config.json"
    if not place.is_file():
        return f"it is a student of kind {before.manifest.get('kind')!r}, without an adapter"
    if before.manifest["base_sha256"] != base_identity(base):
        return f"its base model or tokenizer is not the one in {base}"
    shape = json.loads(place.read_text(encoding="utf-8"))
    if shape["r"] != options.rank:
        return f"its rank is {shape['r']}, and distiller.rank is {options.rank}"
    depth = json.loads((base / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    top = min(options.layers or depth, depth)
    if list(shape["layers_to_transform"]) != list(range(depth - top, depth)):
        return f"it changes other layers than the {top} uppermost"
    return ""


def needed(new: int, share: float) -> int:
    """How many older rows make up at least `share` of the whole beside so many new ones."""
    return math.ceil(round(share * new / (1 - share), 9))


def drawn(strata: Sequence[str], count: int, seed: int) -> list[int]:
    """Indices of `count` of the rows, which come in order of time; each stratum has its share to within one row."""
    order = sorted(range(len(strata)), key=lambda index: (strata[index], index))
    step = len(order) / count if count else 1.0
    first = random.Random(seed).random() * step
    return sorted(order[min(int(first + place * step), len(order) - 1)] for place in range(count))
