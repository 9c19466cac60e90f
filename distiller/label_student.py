"""Owns the student that scores labels: an adapter trained as any other, and its holdout answered by scoring.

Must not know how good the answers are, nor who serves them.
"""

from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from distiller.adapter_student import learned_adapter
from distiller.base import resolve_base
from distiller.dataset import Dataset
from distiller.embedding import Encoders
from distiller.engines import SMALL
from distiller.head import label_set
from distiller.labels import load, save, tree_of
from distiller.recipes import Made, Report
from distiller.settings import Settings
from proxy.errors import Refused


def label_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Train an adapter into `folder`/small that scores the labels; Refused for tasks whose answers are no labels.

    It learns the one spelling of each label that it is then asked to score. Refused too where labels are too many.
    """
    if data.evaluator != "label":
        raise Refused(f"labels can be scored where answers are labels; this task is scored as {data.evaluator}")
    names, numbers = label_set([row.answer for row in data.train])
    base = resolve_base(settings.distiller.base, settings.folder / "bases")
    tree_of(AutoTokenizer.from_pretrained(base), names)  # Nobody trains for an hour to learn that they are too many.
    spelled = [replace(row, answer=names[number]) for row, number in zip(data.train, numbers, strict=True)]
    made = learned_adapter(replace(data, train=spelled), settings, folder / SMALL, on_progress)
    save(folder / SMALL, made.base, names)
    predict = load(folder / SMALL, Encoders([made.base]))
    answers = []
    for prompt in (asked := data.asked(data.holdout)):
        answers += predict([prompt])
        on_progress("holdout", len(answers), len(asked))
    return replace(made, answers=answers)
