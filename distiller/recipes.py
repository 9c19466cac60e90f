"""Owns what a recipe is: a way to make a student of one kind from a dataset, and what it hands over.

Must not judge the student; `distiller.proposal` does. A recipe writes what is served, and nothing that differs between
two runs on the same dataset and settings, into the folder it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distiller.answer_loss import Loss
from distiller.dataset import Dataset
from distiller.generate import Generated
from distiller.incumbent import Incumbent
from distiller.settings import Settings

# Told what is being done, how far it is and of how much.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Made:
    """A student that was made, with its answers to the holdout in the order of that.

    `base` is the folder of the model it grew from, `limit` how many tokens an answer may have, `rows` what it was
    trained on, `left_out` how many rows were not, by reason. `facts` is what the manifest says of the training, with
    its `seconds`; `parent` the student whose weights it went on from. `reads` are folders of further models that it
    needs when it is served. `losses` are those of the teacher's answers to the holdout, in its order; empty where
    nobody asked.
    """

    base: Path
    answers: Sequence[Generated]
    limit: int
    rows: int
    facts: Mapping[str, Any]
    left_out: Mapping[str, int] = field(default_factory=dict)
    parent: Incumbent | None = None
    reads: Sequence[Path] = ()
    losses: Sequence[Loss | None] = ()


Recipe = Callable[[Dataset, Settings, Path, Report], Made]
"""Makes a student in the folder, which is there and empty. Refused where the task is not one for this kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of student: its name in `[distiller] students`, who serves it, how it is made.

    One that is `against` another learns the same rows in as many steps from the same seed, and costs as much to serve:
    it is kept where it is better on the same holdout (`distiller.ab`), and dropped elsewhere.
    `of_base` is whether it grows from `[distiller] base`, which is then its control.
    """

    name: str
    engine: str
    make: Recipe
    against: str = ""
    of_base: bool = True
