"""Owns the student that learns also why the teacher answered so: rationales as a second task of an adapter.

Must not know how good the answers are, nor where rationales come from. It sees the rows of the adapter without, in as
many steps from the same seed: what the rationales take of them, the answers lose.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distiller.adapter_student import taught_rows, train_settings, trained_adapter
from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.examples import Encoded, completion_tokens, encode
from distiller.explained import Why, emptied, prefixed, whys
from distiller.recipes import Made, Report
from distiller.settings import Settings
from distiller.train import plan
from proxy.errors import BadInput, Refused

EXPLAINED = "explained"
RATIONALES = "rationales.json"
"""The exchanges whose rationales were learned, by name: all that it takes to learn them again."""
ALPHA = 0.5
"""What answers count of the loss, the rest being that of rationales (Hsieh et al. 2023, arXiv:2305.02301)."""
FEWEST = 20  # rationales to learn from


def explained_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Train an adapter into `folder`/adapter, and write RATIONALES; Refused where there are too few rationales.

    Where answers reason themselves, their reasons are learned beside them and no longer in them: they stay empty.
    """
    why = whys(data)
    if len(why.texts) < FEWEST:
        raise Refused(
            f"{len(why.texts)} rationales to learn from are too few, {FEWEST} are needed ({why.contradicting} more "
            "contradict their answer): `stillroom explain` asks for them, and so does distiller.rationale_budget"
        )
    return apart(data, settings, folder, on_progress, why)


def apart(data: Dataset, settings: Settings, folder: Path, on_progress: Report, why: Why) -> Made:
    """Answers without their reasons, and these as a task of their own; with no texts in `why` they are not learned."""
    taught = taught_rows(data, settings, on_progress)
    steps = len(plan([len(row.input_ids) for row, _ in taught.rows], train_settings(settings.distiller)))
    given = _Lessons(AutoTokenizer.from_pretrained(taught.base), data, why, settings.distiller.max_tokens)
    sources = [source for _, source in taught.rows]
    answers = given.emptied(sources) if why.keys else [row for row, _ in taught.rows]
    told = given.asides(sources)
    aside = weighed(answers, list(told.values()))
    (folder / RATIONALES).write_text(json.dumps(list(told)))
    made = trained_adapter(taught, answers, data, settings, folder, on_progress, aside, steps)
    return replace(made, facts={**made.facts, "rationales": len(aside), "contradicting": why.contradicting})


def weighed(answers: Sequence[Encoded], aside: Sequence[Encoded], alpha: float = ALPHA) -> list[Encoded]:
    """The rows `aside`, so that their tokens in sum weigh 1 - `alpha` where those of the answers weigh `alpha`."""
    if not aside:
        return []
    weight = (1 - alpha) / alpha * completion_tokens(answers) / completion_tokens(aside)
    return [replace(row, weight=weight) for row in aside]


@dataclass(frozen=True, slots=True)
class _Lessons:
    tokenizer: Any
    data: Dataset
    why: Why
    most: int

    def emptied(self, rows: Sequence[Recorded]) -> list[Encoded]:
        """The rows with no reasons in their answers."""
        asked = self.data.asked(rows)
        return [
            encode(self.tokenizer, messages, emptied(row.answer, self.why.keys))
            for row, messages in zip(rows, asked, strict=True)
        ]

    def asides(self, rows: Sequence[Recorded]) -> dict[str, Encoded]:
        """What is to be said when asked why, by exchange, in the order of the rows; what is too long is left out."""
        asked = self.data.asked(rows)
        found = {row.exchange_id: self._aside(row, messages) for row, messages in zip(rows, asked, strict=True)}
        return {name: one for name, one in found.items() if one is not None and len(one.input_ids) <= self.most}

    def _aside(self, row: Recorded, messages: Sequence[Mapping[str, str]]) -> Encoded | None:
        text = self.why.texts.get(row.exchange_id)
        try:
            return encode(self.tokenizer, prefixed(messages), text) if text else None
        except BadInput:  # It may quote a special token of the base model.
            return None
