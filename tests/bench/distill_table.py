"""Owns the judgement and the tables of the distiller's benchmark, computed from kept answers. Must not know models.

Everything is on later rows. A threshold is proposed on the holdout alone, before they are looked at (`gate_table`).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.evaluators import EVALUATORS
from router.parity import family_alpha
from router.said import Said
from tests.bench.gate_table import RETENTION, Judged, judge

Answers = Mapping[str, Any]
_DRAWS = 2000


def table(found: Sequence[Answers], controls: Mapping[str, Answers], margin: float, alpha: float, seed: int) -> str:
    """Markdown: one line for every student that was tried, those that gave none included."""
    share = family_alpha(alpha, 1)
    lines = [*_HEAD]
    for answers in found:
        if "why" in answers:
            lines.append(f"| {answers['set']} | {answers['kind']} | none: {answers['why']} |")
        else:
            lines.append(_line(answers, controls.get(answers["set"], {}), judge(answers, margin, share), seed))
    return "\n".join([*lines, "", _NOTES.format(bar=1 - margin, alpha=share, retention=f"{RETENTION:.0%}")])


def verdicts(answers: Answers, rows: Sequence[Answers], against: str) -> NDArray[np.float64]:
    """Scores of the rows' texts against what stands under `against` ("teacher" or "gold"), shape (rows,)."""
    score = EVALUATORS[answers["evaluator"]]
    return np.array([
        (_right(row["text"], row[against]) or score({}, Said(row[against]), Said(row["text"]))) if row["finished"]
        else 0.0 for row in rows
    ])  # fmt: skip


def teachers(answers: Answers, rows: Sequence[Answers]) -> NDArray[np.float64]:
    """Scores of the teacher's answers against gold, shape (rows,)."""
    return verdicts(answers, [{**row, "text": row["teacher"], "finished": True} for row in rows], "gold")


def paired(one: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """The mean difference of paired scores and its 95 % interval: percentile bootstrap over rows (Efron 1979)."""
    difference = one - other
    draws = np.random.default_rng(seed).integers(0, difference.size, (_DRAWS, difference.size))
    low, high = np.quantile(difference[draws].mean(axis=1), (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def retention(answers: Answers, seed: int) -> tuple[float, float]:
    """Student's score as a share of the teacher's, and its one-sided 95 % lower bound (bootstrap over rows).

    On the right answer where every row has one, else on agreement with the teacher, whose own score is then 1.
    """
    rows = answers["test"]
    if answers["evaluator"] != "exact" and all(row["gold"] is not None for row in rows):
        student, teacher = verdicts(answers, rows, "gold"), teachers(answers, rows)
    else:
        student, teacher = verdicts(answers, rows, "teacher"), np.ones(len(rows))
    draws = np.random.default_rng(seed).integers(0, student.size, (_DRAWS, student.size))
    shares = student[draws].mean(axis=1) / teacher[draws].mean(axis=1)
    return float(student.mean() / teacher.mean()), float(np.quantile(shares, 0.05))


def majority(answers: Answers, train: Sequence[str]) -> float:
    """What always saying the most common answer would score."""
    common = Counter(train).most_common(1)[0][0]
    rows = [{**row, "text": common, "finished": True} for row in answers["test"]]
    return float(verdicts(answers, rows, "teacher").mean())


def _right(text: str, wanted: str) -> float:
    """1 where an answer in JSON says what is wanted as its `answer`: gold may be the bare answer."""
    try:
        said = json.loads(text)
    except ValueError:
        return 0.0
    return float(isinstance(said, dict) and str(said.get("answer", "")).strip() == wanted)


def _line(answers: Answers, control: Answers, one: Judged, seed: int) -> str:
    rows, trained, scores = answers["test"], answers["trained"], answers["scores"]
    gold = all(row["gold"] is not None for row in rows)
    kept, least = retention(answers, seed)
    right = f"{teachers(answers, rows).mean():.3f} / {verdicts(answers, rows, 'gold').mean():.3f}" if gold else "-"
    speed = f"{trained['tokens'] / trained['seconds']:,.0f}" if "tokens" in trained else "-"
    cells = [
        answers["set"], answers["kind"], f"{one.agreement:.3f} ({one.rows})", right, f"{kept:.3f} ({least:.3f})",
        f"{one.at_retention:.0%}", _certified(one), f"{answers['rows']:,}", f"{answers['seconds'] / 60:.1f}", speed,
        _number(control.get("majority")), _number(control.get("naive Bayes")),
        _number(scores["base"] if scores["base"] is not None else control.get("base")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _certified(one: Judged) -> str:
    share = f"{one.covered / one.rows:.0%}"
    if one.whole.proven:
        return "100% (whole)"
    return f"{share}, above {one.selective.lower:.3f}" if one.selective.proven else f"none ({share} proposed)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_HEAD = (
    "| set | student | agreement (rows) | right: teacher / student | retention (at least) | covered at 95 % "
    "| certified | rows learned | minutes | tokens/s | majority | naive Bayes | untuned base |",
    "|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
)
_NOTES = """agreement: mean verdict against the teacher on later rows. right: against the right answer, where it is
known. retention: the student's share of the teacher's score, on the right answer where every row has one, else on
agreement, with its one-sided 95 % lower bound (bootstrap). covered at 95 %: the largest share of rows, most confident
first, with mean agreement of at least {retention}; in hindsight. certified: what the parity test proves above {bar:g}
at alpha {alpha:g} with the threshold proposed on the holdout; no promise of more. minutes: curation, training, holdout
and controls. untuned base: the language model without training, on the first holdout rows."""
