"""Owns what is proposed after training: a student's holdout verdicts, its calibration and threshold, and its card.

Must not know how a student was made, nor register it. What stands in its folder afterwards is the same for the same
dataset, settings and verdicts.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.generate import Generated
from distiller.leaks import leak_report
from distiller.noise import doubted
from distiller.recipes import Kind, Made, Report
from distiller.scoring import Answered, Score
from distiller.settings import DistillerSettings, Settings
from proxy.errors import Refused
from router.calibration import Calibration, apply, calibrate
from router.confidence import confidence, first
from router.coverage import Plan, Threshold, choose_threshold
from router.evaluators import JUDGE, well_formed
from router.prompt import extra_lines
from router.said import Said
from router.sampling import ALL

GOLDEN = 8
LINEAGE, HOLDOUT = "lineage.json", "holdout.jsonl"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One student of `kind` in `folder`, ready to be sealed; `verdicts` in [0, 1] are those of its holdout answers.

    `options` are what it was made with.
    """

    kind: Kind
    options: DistillerSettings
    folder: Path
    made: Made
    verdicts: Sequence[float]
    calibration: Calibration
    threshold: Threshold | None

    @property
    def score(self) -> float:
        """Mean verdict over the whole holdout."""
        return mean(self.verdicts)

    @property
    def coverage(self) -> float:
        """The share of the holdout it would answer; 0 where nothing is proposed."""
        return self.threshold.coverage if self.threshold else 0.0


def propose(
    kind: Kind, data: Dataset, settings: Settings, folder: Path, score: Score, plan: Plan, on_progress: Report
) -> Proposal:
    """Make a student in `folder` and judge its holdout; Refused where the task is not for its kind."""
    made = kind.make(data, settings, folder, on_progress)
    verdicts = judge(data.holdout, made.answers, score)
    sure, judged = servable(data, made.answers, verdicts)
    calibration = calibrate(sure, judged)
    calibrated = [apply(calibration.knots, one) for one in sure]
    threshold = choose_threshold(calibrated, judged, settings.router.margin, plan=plan, of=len(made.answers))
    _write_evidence(folder, data, made, verdicts)
    return Proposal(kind, settings.distiller, folder, made, verdicts, calibration, threshold)


def report_data(data: Dataset, folder: Path) -> None:
    """What can be said against the dataset, as files of the bundle: leaks, and labels that rows like theirs contradict.

    Exchanges are named, and none is quoted: of an erased one, its name says nothing.
    """
    leak_report(data.train, data.holdout).write(folder)
    if data.evaluator != "label":
        return
    found = doubted(data.train, data.declared.aliases)
    lines = {
        "judged": found.judged,
        "unjudged": found.unjudged,
        "doubted": [flag.exchange_id for flag in found.flags],
        "confused": [[given, suggested, count] for (given, suggested), count in found.confused.items()],
    }
    (folder / "doubted_labels.json").write_text(json.dumps(lines, indent=1) + "\n")


def answered(row: Recorded, text: str) -> Answered:
    """An answer to a row, ready to be scored."""
    return Answered(row.exchange_id, row.request, row.answer, text)


def servable(data: Dataset, answers: Sequence[Generated], verdicts: Sequence[float]) -> tuple[list[float], list[float]]:
    """Confidences and verdicts of the answers that may go out at all: the others fall back however sure they are."""
    fit = fit_to_serve(data, answers)
    return list(compress(sureness(data, answers), fit)), list(compress(verdicts, fit))


def fit_to_serve(data: Dataset, answers: Sequence[Generated]) -> list[bool]:
    """Which answers may go out; where the first tokens decide all may, as nothing else is known when they do."""
    if data.declared.first_tokens:
        return [True] * len(answers)
    labels = frozenset(data.labels)
    return [answer.finished and well_formed(data.evaluator, Said(answer.text), labels) for answer in answers]


def sureness(data: Dataset, answers: Sequence[Generated]) -> list[float]:
    """The confidence that decides about each answer: of the first tokens, where these do, else of the whole."""
    if tokens := data.declared.first_tokens:
        return [confidence(first(one.logprobs, tokens)) for one in answers]
    return [one.confidence for one in answers]


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def card(proposal: Proposal, data: Dataset, settings: Settings) -> dict[str, Any]:
    """What serving and judging need to know of the student, golden prompts and what was declared included."""
    made = proposal.made
    golden = [
        {"messages": prompt, "text": answer.text}
        for prompt, answer in zip(data.asked(data.holdout), made.answers, strict=True)
        if answer.finished
    ][:GOLDEN]
    if not golden:
        raise Refused("the student never ends its answers: train longer (distiller.epochs), or on more exchanges")
    rows = [*data.train, *data.holdout]
    return {
        "engine": proposal.kind.engine,
        "base": str(made.base),
        "reads": [str(folder) for folder in made.reads],
        "static": sorted(data.static),
        "extra_lines": max(extra_lines(row.messages, data.static) for row in rows),
        "labels": list(data.labels),
        "aliases": data.declared.aliases,
        "sets": list(data.declared.sets),
        "first_tokens": data.declared.first_tokens,
        "max_tokens": made.limit,
        "data_until": max(row.ts for row in rows).isoformat(),
        "golden": golden,
        "calibration": proposal.calibration.knots,
        "judged_share": settings.router.judged_share if data.evaluator == JUDGE else ALL,
    }


def judge(rows: Sequence[Recorded], answers: Sequence[Generated], score: Score) -> list[float]:
    """Verdicts of the answers to `rows`; one that did not end is wrong, and nobody is asked about it."""
    texts = [answer.text if answer.finished else None for answer in answers]
    ended = [(row, text) for row, text in zip(rows, texts, strict=True) if text is not None]
    scores = iter(score([answered(row, text) for row, text in ended]))
    return [0.0 if text is None else next(scores) for text in texts]


def _write_evidence(folder: Path, data: Dataset, made: Made, verdicts: Sequence[float]) -> None:
    """Lineage and per-example holdout outputs, as files of the bundle."""
    trained = [row.exchange_id for row in data.train]
    lineage: dict[str, Any] = {"snapshot": data.snapshot, "exchanges": trained}
    if made.parent:
        inherited = sorted(made.parent.learned.difference(trained))
        lineage |= {"parent": made.parent.id, "inherited": inherited}
    if acknowledged := [one.provider for one in data.terms if one.acknowledged]:
        lineage["teacher_terms_ack"] = acknowledged
    (folder / LINEAGE).write_text(json.dumps(lineage))
    with (folder / HOLDOUT).open("w", encoding="utf-8") as out:
        for row, answer, verdict in zip(data.holdout, made.answers, verdicts, strict=True):
            line = {"exchange": row.exchange_id, "teacher": row.answer, **asdict(answer), "verdict": verdict}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
