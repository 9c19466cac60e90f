"""Owns the judgement and the tables of the gate's benchmark, computed from kept answers. Must not know models.

A threshold is proposed from the holdout rows alone; only then the test rows are judged, in their order.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from scipy.stats import binomtest

from router.calibration import apply, calibrate
from router.coverage import choose_threshold, coverage_at
from router.evaluators import EVALUATORS, well_formed
from router.parity import Parity, family_alpha, parity
from router.said import Said
from tests.bench.early import early, head

RETENTION = 0.95
Answers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """One set of answers by one student; `threshold` is on the calibrated scale, None where none was proposed."""

    agreement: float
    whole: Parity
    selective: Parity
    threshold: float | None
    covered: int
    rows: int
    interval: tuple[float, float]
    at_retention: float
    calibration: str

    @property
    def certified(self) -> bool:
        """Whether the gate would let any of it through."""
        return self.whole.proven or self.selective.proven


def table(found: Sequence[Answers], margin: float, alpha: float, seed: int) -> tuple[str, int]:
    """Markdown, and how many students were certified that must not be."""
    share = family_alpha(alpha, 1)
    own = [answers for answers in found if answers["kind"] == "own"]
    judged = {answers["set"]: judge(answers, margin, share) for answers in own}
    lines = [*_HEAD, *(_line(answers, judged[answers["set"]]) for answers in own)]
    lines += [f"| {one['set']} | not served: tools stay with the teacher |" for one in found if one["kind"] == "tools"]
    lines += [f"| {one['set']} | no student: {one['why']} |" for one in found if one["kind"] == "refused"]
    adversaries = [(why, answers["set"], judge(answers, margin, share)) for why, answers in _adversaries(found, seed)]
    lines += ["", *head(), *(_early(answers) for answers in own)]
    lines += ["", *_MUST_DECLINE, *(_decline(*adversary) for adversary in adversaries)]
    wrong = sum(one.certified for *_, one in adversaries)
    notes = _NOTES.format(bar=1 - margin, alpha=share, retention=f"{RETENTION:.0%}")
    return "\n".join(
        [*lines, "", f"{wrong} of {len(adversaries)} that must be declined were certified.", "", notes]
    ), wrong


def judge(answers: Answers, margin: float, alpha: float) -> Judged:
    """Propose on the holdout, then test."""
    sure, verdicts, formed = _columns(answers, answers["holdout"])
    calibration = calibrate(list(compress(sure, formed)), list(compress(verdicts, formed)))
    calibrated = [apply(calibration.knots, one) for one in compress(sure, formed)]
    found = choose_threshold(calibrated, list(compress(verdicts, formed)), margin, of=len(sure))
    sure, verdicts, formed = _columns(answers, answers["test"])
    served = [apply(calibration.knots, one) if good else -1.0 for one, good in zip(sure, formed, strict=True)]
    least = found.value if found else 0.0
    covered = [verdict for one, verdict in zip(served, verdicts, strict=True) if one >= least]
    before, after = calibration.before, calibration.after
    return Judged(
        agreement=sum(verdicts) / len(verdicts),
        whole=parity(verdicts, margin, alpha),
        selective=parity(covered, margin, alpha),
        threshold=found.value if found else None,
        covered=len(covered),
        rows=len(verdicts),
        interval=tuple(binomtest(len(covered), len(verdicts)).proportion_ci(1 - alpha)),  # exact: looked at once
        at_retention=coverage_at(
            list(compress(served, formed)), list(compress(verdicts, formed)), RETENTION, of=len(verdicts)
        ),
        calibration=f"{before.ece:.3f} -> {after.ece:.3f} ({len(calibrated)})" if before and after else "-",
    )


def _early(answers: Answers) -> str:
    _, verdicts, formed = _columns(answers, answers["test"])
    return early(answers, verdicts, formed, RETENTION)


def _columns(answers: Answers, rows: Sequence[Answers]) -> tuple[list[float], list[float], list[bool]]:
    """Confidence, verdict, and whether the answer could be served at all."""
    score, labels = EVALUATORS[answers["evaluator"]], frozenset(answers["labels"])
    formed = [row["finished"] and well_formed(answers["evaluator"], Said(row["text"]), labels) for row in rows]
    verdicts = [score({}, Said(row["teacher"]), Said(row["text"])) if row["finished"] else 0.0 for row in rows]
    return [row["confidence"] for row in rows], verdicts, formed


def _adversaries(found: Sequence[Answers], seed: int) -> Iterator[tuple[str, Answers]]:
    """What must be declined, with why."""
    own = [answers for answers in found if answers["kind"] == "own"]
    for answers in found:
        if answers["kind"] == "shuffled":
            yield "trained and judged on shuffled answers", answers
        if answers["kind"] == "foreign":
            yield f"student of {answers['by']}", answers
    for answers in own:
        yield "own student, judged by shuffled answers", _changed(answers, _shuffled(seed))
        common = Counter(row["teacher"] for row in answers["holdout"]).most_common(1)[0][0]
        yield "always the most common answer, confidence 1", _changed(answers, _constant(common))


def _changed(answers: Answers, change: Callable[[list[Answers]], list[dict[str, Any]]]) -> Answers:
    return {**answers, **{part: change(answers[part]) for part in ("holdout", "test")}}


def _shuffled(seed: int) -> Callable[[list[Answers]], list[dict[str, Any]]]:
    def change(rows: list[Answers]) -> list[dict[str, Any]]:
        teachers = [row["teacher"] for row in rows]
        random.Random(seed).shuffle(teachers)
        return [{**row, "teacher": teacher} for row, teacher in zip(rows, teachers, strict=True)]

    return change


def _constant(text: str) -> Callable[[list[Answers]], list[dict[str, Any]]]:
    return lambda rows: [{**row, "text": text, "confidence": 1.0, "finished": True} for row in rows]


def _line(answers: Answers, one: Judged) -> str:
    scores, tokens = answers["scores"], answers["trained"]["tokens"]
    cells = [
        answers["set"], answers["evaluator"], f"{tokens:,}", f"{scores['base']:.3f} ({scores['base_rows']})",
        f"{one.agreement:.3f} ({one.rows})", _said(one.whole), one.calibration,
        "none" if one.threshold is None else f"{one.threshold:.3f}", _coverage(one), _said(one.selective),
        f"{one.at_retention:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _decline(why: str, name: str, one: Judged) -> str:
    verdict = "CERTIFIED" if one.certified else "declined"
    cells = [name, why, f"{one.agreement:.3f}", _said(one.whole), _coverage(one), _said(one.selective), verdict]
    return f"| {' | '.join(cells)} |"


def _coverage(one: Judged) -> str:
    return f"{one.covered / one.rows:.0%} ({one.interval[0]:.0%}..{one.interval[1]:.0%})"


def _said(one: Parity) -> str:
    word = "certified" if one.proven else "refuted" if one.refuted else "not yet"
    return f"{word} {one.lower:.3f}..{one.upper:.3f} (n {one.n})"


_HEAD = (
    "| set | evaluator | tokens | base (rows) | student (rows) | whole parity | ECE (rows) | threshold | coverage "
    "| selective parity | covered at 95 % |",
    "|---|---|--:|--:|--:|---|---|--:|---|---|--:|",
)
_MUST_DECLINE = (
    "| set | must be declined | agreement | whole parity | coverage | selective parity | gate |",
    "|---|---|--:|---|---|---|---|",
)
_NOTES = """base, student: mean verdict of the untuned model (holdout rows) and of the student (test rows).
Parity: bounds on the mean verdict over test rows in their order, at alpha {alpha:g}; certified means above {bar:g}.
whole: every answer counts, one that never ended as 0. selective: only answers that could be served (ended, and of
the task's form) at or above the threshold, which was proposed on earlier rows that nobody trained on; where none was,
all that could be served, as shadow does.
ECE: calibration error before and after, on holdout rows the calibration did not see (how many could be served).
covered at 95 %: the largest share of test rows the student could answer with a mean verdict of at least {retention} of
the teacher's own (its recorded answer, so 1), most confident first; found in hindsight, no promise.
first k: were it decided after so many tokens, when nothing can be checked yet: the chance that a right answer (verdict
1) is surer than a wrong one, and what is covered at 95 % so; whole: as it is decided, form and end checked."""
