"""Owns one distillation from end to end: dataset, students of every kind that may do, the best sealed and registered.

Reads like the recipe it is. The student is registered at stage shadow and nothing more: what it may answer is decided
later, on exchanges it never saw. Must not know how students are trained or served.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distiller import terms
from distiller.adapter_student import threads
from distiller.base import base_identity
from distiller.bundle import Bundle, seal
from distiller.champion import Duel, duel, in_words
from distiller.dataset import Dataset, dataset
from distiller.explained_student import EXPLAINED
from distiller.explaining import with_rationales
from distiller.generate import generate
from distiller.languages import Languages, languages
from distiller.proposal import Proposal, answered, card, mean, propose, report_data
from distiller.recipes import Made, Report
from distiller.repeating import consistent
from distiller.scoring import Score, scoring
from distiller.settings import Settings
from distiller.signature import sign
from distiller.snapshots import changes
from distiller.tries import Tried, Try, best
from proxy.log import Log
from proxy.teachers import connect_teachers
from router.calibration import Calibration
from router.coverage import Plan, Threshold
from router.evaluators import JUDGE
from router.ledger import charge
from router.prompt import student_messages
from router.registry import register

# What one exchange costs at the teacher: unpriced as soon as one of them is.
_WORTH = """
SELECT (SELECT count(*) FROM exchanges WHERE task = $1 AND served_by = 'teacher' AND path = '/v1/chat/completions'),
       (SELECT CASE WHEN count(usd) = count(*) THEN avg(usd) END FROM spend
        WHERE task = $1 AND kind = 'teacher' AND path = '/v1/chat/completions')
"""
# What one exchange has cost at candidates so far, idle hours included; nothing is known before the first is served.
_SERVING_WORTH = """
SELECT (SELECT CASE WHEN count(usd) = count(*) THEN sum(usd) END FROM spend WHERE kind = 'serving')
       / nullif((SELECT count(*) FROM exchanges WHERE served_by NOT IN ('teacher', 'stillroom')
               AND served_by NOT IN (SELECT id FROM candidates WHERE kind = 'hosted')), 0)
"""


@dataclass(frozen=True, slots=True)
class Holdout:
    """Scores on later rows nobody trained on; means of verdicts in [0, 1], untuned base and majority as controls.

    The base is the language model a student grew from; other kinds have none.
    """

    rows: int
    student: float
    base: float | None
    base_rows: int
    majority: float


@dataclass(frozen=True, slots=True)
class Distilled:
    """What one distillation did."""

    bundle: Bundle
    fresh: bool
    kind: str
    tried: Sequence[Tried]
    snapshot: int
    read: int
    dropped: Mapping[str, int]
    trained_rows: int
    trained: Mapping[str, Any]
    evaluator: str
    holdout: Holdout
    threshold: Threshold | None
    calibration: Calibration
    duel: Duel | None
    """Against the student that answers now; where it was lost, the new one is kept but no candidate."""
    languages: Languages
    """How it did on each, where there are several."""
    notes: Sequence[str]
    """What people should be told: a teacher that changed, terms, the duel, where training started."""


def distill(log: Log, settings: Settings, task: str, on_progress: Report) -> Distilled:
    """Distill one student for `task`; Refused when there is too little to learn from, with how much is missing."""
    started = time.perf_counter()
    data = dataset(log, task, settings)
    if settings.distiller.rationale_budget or settings.distiller.repeat_budget:
        connect_teachers(settings.teacher)  # Nor to learn that there is no key to ask with.
    with scoring(log, settings, task, data.evaluator, data.declared) as score:
        score([answered(data.train[-1], data.train[-1].answer)])  # Nobody trains for an hour to learn that it raises.
        data = consistent(log, settings, data, on_progress)
        plan = _plan(log, task, settings)

        def make(one: Try, folder: Path) -> Proposal:
            known = with_rationales(log, settings, data, on_progress) if one.kind.name == EXPLAINED else data
            return propose(one.kind, known, replace(settings, distiller=one.options), folder, score, plan, on_progress)

        settings.students.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=settings.students))
        try:
            chosen, tried = best(settings.distiller, scratch, make)
            holdout = _controls(chosen, data, settings, score, on_progress)
            against = duel(log, data, chosen.verdicts, settings, score, on_progress)
            return _finish(log, settings, data, chosen, tried, holdout, against, started)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _finish(
    log: Log, settings: Settings, data: Dataset, chosen: Proposal, tried: Sequence[Tried], holdout: Holdout,
    against: Duel | None, started: float,
) -> Distilled:  # fmt: skip
    made, threshold, router = chosen.made, chosen.threshold, settings.router
    dropped = dict(Counter(data.dropped) + Counter(made.left_out))
    said, spoken = card(chosen, data, settings), languages(data, chosen, chosen.options)
    manifest = {
        "task": data.task, "kind": chosen.kind.name, "snapshot": data.snapshot, "base_sha256": base_identity(made.base),
        "settings": asdict(chosen.options), "card": said, "evaluator": data.evaluator, "read": data.read,
        "dropped": dropped, "trained": {"rows": made.rows, **made.facts}, "tried": [asdict(one) for one in tried],
        "holdout": asdict(holdout), "threshold": asdict(threshold) if threshold else None,
        "calibration": asdict(chosen.calibration), "champion": asdict(against) if against else None,
        "snapshots": [asdict(one) for one in data.snapshots], "terms": [asdict(one) for one in data.terms],
        "languages": asdict(spoken),
    }  # fmt: skip
    report_data(data, chosen.folder)
    bundle = seal(chosen.folder, settings.students, manifest)
    sign(bundle.path, settings.signing)
    fresh = not (against and against.lost) and register(
        log, candidate=bundle.id, task=data.task, kind="student", evaluator=data.evaluator,
        threshold=threshold.value if threshold else None, margin=router.margin, alpha=router.alpha,
        snapshot=data.snapshot, bundle=str(bundle.path), card=said,
    )  # fmt: skip
    hours = (time.perf_counter() - started) / 3600
    charge(log, "training", hours * settings.money.training_hour, hours, "hour", task=data.task, model=bundle.id)
    return Distilled(
        bundle, fresh, chosen.kind.name, tried, data.snapshot, data.read, dropped, made.rows, made.facts,
        data.evaluator, holdout, threshold, chosen.calibration, against, spoken, _notes(data, made, against),
    )  # fmt: skip


def _notes(data: Dataset, made: Made, against: Duel | None) -> list[str]:
    parent, why = made.facts.get("parent"), made.facts.get("from_base_because")
    return [
        *changes(data.snapshots),
        *(terms.in_words(one) for one in data.terms if not one.acknowledged),
        *([f"went on from {parent}, with {made.facts['replayed']} older rows"] if parent else []),
        *([f"trained from the base: {why}"] if why else []),
        *([in_words(against)] if against else []),
    ]


def _plan(log: Log, task: str, settings: Settings) -> Plan:
    """As many exchanges to come as the task has had; both prices, where both are known."""
    ((exchanges, teacher),) = log.query(_WORTH, [task])
    ((serving,),) = log.query(_SERVING_WORTH)
    return Plan(
        alpha=settings.router.alpha,
        horizon=exchanges,
        audit_share=settings.router.audit_share,
        teacher_usd=teacher,
        candidate_usd=serving,
    )


def _controls(best: Proposal, data: Dataset, settings: Settings, score: Score, on_progress: Report) -> Holdout:
    """The student beside the untuned base, which gets the whole instructions, and the most common answer."""
    rows = data.holdout[: settings.distiller.control_rows]
    common = Counter(row.answer for row in data.train).most_common(1)[0][0]
    held = rows if data.evaluator == JUDGE else data.holdout  # A judge is paid for each, and free text has no majority.
    base = None
    if best.kind.of_base:
        whole = [student_messages(row.messages, frozenset()) for row in rows]
        untuned = generate(
            best.made.base, None, whole, best.made.limit, threads(settings.distiller),
            lambda i, n: on_progress("untuned base as control", i, n),
        )  # fmt: skip
        base = mean(score([answered(row, answer.text) for row, answer in zip(rows, untuned, strict=True)]))
    return Holdout(
        rows=len(best.verdicts),
        student=best.score,
        base=base,
        base_rows=0 if base is None else len(rows),
        majority=mean(score([answered(row, common) for row in held])),
    )
