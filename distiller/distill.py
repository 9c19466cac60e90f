"""Owns one distillation from end to end: dataset, students of every kind that may do, the best sealed and registered.

Reads like the recipe it is. The student is registered at stage shadow and nothing more: what it may answer is decided
later, on exchanges it never saw. Must not know how students are trained or served.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distiller.adapter_student import ADAPTER, adapter_student, soft_student, threads
from distiller.base import base_identity
from distiller.bundle import Bundle, seal
from distiller.cascade import KIND as CASCADE
from distiller.cascade_student import cascade_student
from distiller.dataset import Dataset, dataset
from distiller.engines import SMALL, VLLM
from distiller.generate import generate
from distiller.label_student import label_student
from distiller.labels import KIND as LABELS
from distiller.proposal import Proposal, answered, card, mean, propose, report_data
from distiller.recipes import Kind, Report
from distiller.scoring import Score, scoring
from distiller.settings import Settings
from distiller.small_students import encoder_student, head_student
from proxy.errors import Refused, Unavailable
from proxy.log import Log
from router.calibration import Calibration
from router.coverage import Plan, Threshold
from router.evaluators import JUDGE
from router.ledger import charge
from router.prompt import student_messages
from router.registry import register

# The cheapest to serve first.
KINDS = (
    Kind("head", SMALL, head_student, of_base=False), Kind("encoder", SMALL, encoder_student, of_base=False),
    Kind(CASCADE, SMALL, cascade_student), Kind(LABELS, SMALL, label_student), Kind(ADAPTER, VLLM, adapter_student),
    Kind("soft", VLLM, soft_student),
)  # fmt: skip

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
class Tried:
    """One kind of student that was tried on the task; `why` it gave none, else its mean verdict and proposed coverage.

    `score` and `coverage` are of the holdout, in [0, 1].
    """

    kind: str
    score: float | None = None
    coverage: float | None = None
    seconds: float | None = None
    why: str = ""


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


def distill(log: Log, settings: Settings, task: str, on_progress: Report) -> Distilled:
    """Distill one student for `task`; Refused when there is too little to learn from, with how much is missing."""
    started = time.perf_counter()
    data = dataset(log, task, settings)
    with scoring(log, settings, task, data.evaluator, data.declared) as score:
        score([answered(data.train[-1], data.train[-1].answer)])  # Nobody trains for an hour to learn that it raises.
        settings.students.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=settings.students))
        try:
            best, tried = _best(data, settings, scratch, score, _plan(log, task, settings), on_progress)
            holdout = _controls(best, data, settings, score, on_progress)
            return _finish(log, settings, data, best, tried, holdout, started)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _best(
    data: Dataset, settings: Settings, scratch: Path, score: Score, plan: Plan, on_progress: Report
) -> tuple[Proposal, list[Tried]]:
    """The student that would answer most, the cheapest of equals; Refused, with every reason, where there is none."""
    options, proposals, tried = settings.distiller, [], []
    for kind in (one for one in KINDS if one.name in options.students):
        folder = scratch / kind.name
        folder.mkdir()
        started = time.perf_counter()
        try:
            one = propose(kind, data, settings, folder, score, plan, on_progress)
        except (Refused, Unavailable) as error:
            if len(options.students) == 1:
                raise
            tried.append(Tried(kind.name, why=str(error)))
            continue
        proposals.append(one)
        tried.append(Tried(kind.name, one.score, one.coverage, time.perf_counter() - started))
        if one.coverage >= options.enough_coverage:
            break
    if not proposals:
        raise Refused("; ".join(f"{one.kind}: {one.why}" for one in tried))
    return max(proposals, key=lambda one: (one.coverage, one.score)), tried


def _finish(
    log: Log, settings: Settings, data: Dataset, best: Proposal, tried: Sequence[Tried], holdout: Holdout,
    started: float,
) -> Distilled:  # fmt: skip
    made, threshold, router = best.made, best.threshold, settings.router
    dropped = dict(Counter(data.dropped) + Counter(made.left_out))
    said = card(best, data, settings)
    manifest = {
        "task": data.task, "kind": best.kind.name, "snapshot": data.snapshot, "base_sha256": base_identity(made.base),
        "settings": asdict(settings.distiller), "card": said, "evaluator": data.evaluator, "read": data.read,
        "dropped": dropped, "trained": {"rows": made.rows, **made.facts}, "tried": [asdict(one) for one in tried],
        "holdout": asdict(holdout), "threshold": asdict(threshold) if threshold else None,
        "calibration": asdict(best.calibration),
    }  # fmt: skip
    report_data(data, best.folder)
    bundle = seal(best.folder, settings.students, manifest)
    fresh = register(
        log, candidate=bundle.id, task=data.task, kind="student", evaluator=data.evaluator,
        threshold=threshold.value if threshold else None, margin=router.margin, alpha=router.alpha,
        snapshot=data.snapshot, bundle=str(bundle.path), card=said,
    )  # fmt: skip
    hours = (time.perf_counter() - started) / 3600
    charge(log, "training", hours * settings.money.training_hour, hours, "hour", task=data.task, model=bundle.id)
    return Distilled(
        bundle, fresh, best.kind.name, tried, data.snapshot, data.read, dropped, made.rows, made.facts, data.evaluator,
        holdout, threshold, best.calibration,
    )  # fmt: skip


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
