"""Owns the student that is a cascade: a linear head, and behind it a language model that scores the labels.

Must not know how good the answers are on the holdout, nor who serves them.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from distiller.cascade import FIRST, SECOND, Told, choose, save
from distiller.dataset import Dataset
from distiller.embedding import Encoders
from distiller.engines import SMALL
from distiller.label_student import label_student
from distiller.recipes import Made, Recipe, Report
from distiller.settings import Settings
from distiller.small import load_small
from distiller.small_students import head_student
from proxy.errors import Refused
from router.evaluators import evaluator
from router.said import Said

_SHARE = 5  # of the rows to learn from one in so many says instead when the second part is asked


def cascade_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Train both parts below `folder`/small; Refused as each part is, and where the second would not help.

    When it is asked is chosen on the latest rows, from which neither part learns: `left_out` counts them.
    """
    if data.evaluator != "label":
        raise Refused(f"a cascade answers with labels; this task is scored as {data.evaluator}")
    kept = -(-len(data.train) // _SHARE)
    earlier = replace(data, train=data.train[:-kept], holdout=data.train[-kept:])
    parts = [
        _part(recipe, earlier, settings, folder, name, on_progress)
        for recipe, name in ((head_student, FIRST), (label_student, SECOND))
    ]
    first, second = parts
    chosen = choose(_told(earlier, first), _told(earlier, second), 1 - settings.router.margin)
    save(folder / SMALL, chosen.rule)
    predict = load_small(folder / SMALL, Encoders([first.base, second.base]))
    answers = []
    for prompt in (asked := data.asked(data.holdout)):
        answers += predict([prompt])
        on_progress("holdout", len(answers), len(asked))
    facts = {
        "threshold": chosen.rule.threshold, "coverage": chosen.coverage, "first_coverage": chosen.first_coverage,
        "asked_twice": chosen.asked_twice, "seconds": sum(part.facts["seconds"] for part in parts),
        FIRST: dict(first.facts), SECOND: dict(second.facts),
    }  # fmt: skip
    left_out = dict(Counter(second.left_out) + Counter(calibration=kept))
    return Made(second.base, answers, second.limit, second.rows, facts, left_out, reads=(first.base,))


def _part(recipe: Recipe, data: Dataset, settings: Settings, folder: Path, name: str, on_progress: Report) -> Made:
    """A student of its own, whose folder is then one of the cascade's."""
    own = folder / name
    own.mkdir()
    made = recipe(data, settings, own, on_progress)
    (folder / SMALL).mkdir(exist_ok=True)
    (own / SMALL).rename(folder / SMALL / name)
    if not any(own.iterdir()):
        own.rmdir()
    return made


def _told(data: Dataset, made: Made) -> Told:
    score = evaluator(data.evaluator, data.declared.aliases)
    verdicts = [
        score(row.request, Said(row.answer), Said(one.text)) if one.finished else 0.0
        for row, one in zip(data.holdout, made.answers, strict=True)
    ]
    return Told([one.confidence for one in made.answers], verdicts)
