"""Owns one distillation from end to end: snapshot, curate, split, train, holdout, seal, register.

Reads like the recipe it is. The student is registered at stage shadow and nothing more: what it may answer is decided
later, on exchanges it never saw. Must not know how students are served.
"""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distiller.base import base_identity, compute_dtype, resolve_base
from distiller.bundle import Bundle, seal
from distiller.curate import Curation, Recorded, Split, curate, split
from distiller.examples import Encoded, encode
from distiller.generate import Generated, generate
from distiller.scoring import Answered, Score, scoring
from distiller.settings import DistillerSettings, Settings
from distiller.train import Trained, TrainSettings, train
from proxy.errors import BadInput, Refused
from proxy.log import Log
from router.calibration import Calibration, apply, calibrate
from router.confidence import confidence, first
from router.coverage import Plan, Threshold, choose_threshold
from router.evaluators import JUDGE, evaluator_for, known_labels, well_formed
from router.judging import judge_instead
from router.ledger import charge
from router.prompt import extra_lines, static_lines, student_messages
from router.registry import register
from router.said import Said
from router.sampling import ALL
from router.settings import TaskSettings

GOLDEN = 8
# Told what is being done, how far it is and of how much.
Report = Callable[[str, int, int], None]

_ROWS = """
SELECT id, ts, request, coalesce(answer, ''), status, partial, finish_reason, tool_calls IS NOT NULL
FROM exchanges AT (VERSION => {version})
WHERE task = ? AND served_by = 'teacher' AND path = '/v1/chat/completions' AND request_encoding = 'utf-8'
ORDER BY id DESC LIMIT ?
"""
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
    """Scores on later rows nobody trained on; means of verdicts in [0, 1], base and majority as controls."""

    rows: int
    student: float
    base: float
    base_rows: int
    majority: float


@dataclass(frozen=True, slots=True)
class Distilled:
    """What one distillation did."""

    bundle: Bundle
    fresh: bool
    snapshot: int
    read: int
    dropped: Mapping[str, int]
    trained_rows: int
    trained: Trained
    evaluator: str
    holdout: Holdout
    threshold: Threshold | None
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class _Data:
    snapshot: int
    read: int
    dropped: Mapping[str, int]
    train: Sequence[Recorded]
    holdout: Sequence[Recorded]
    static: frozenset[str]
    evaluator: str
    declared: TaskSettings
    labels: tuple[str, ...]


def distill(log: Log, settings: Settings, task: str, on_progress: Report) -> Distilled:
    """Distill one student for `task`; Refused when there is too little to learn from, with how much is missing."""
    started = time.perf_counter()
    data = _dataset(log, task, settings)
    with scoring(log, settings, task, data.evaluator, data.declared) as score:
        score([_answered(data.train[-1], data.train[-1].answer)])  # Nobody trains for an hour to learn that it raises.
        return _distill(log, settings, task, data, score, on_progress, started)


def _distill(
    log: Log, settings: Settings, task: str, data: _Data, score: Score, on_progress: Report, started: float
) -> Distilled:
    options = settings.distiller
    on_progress(f"base model {options.base}", 0, 1)
    base = resolve_base(options.base, settings.folder / "bases")
    encoded, left_out = _encoded(base, data, options)
    settings.students.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".making-", dir=settings.students))
    try:
        adapter = folder / "adapter"
        trained = train(base, encoded, _train_settings(options), adapter, lambda i, n, _: on_progress("training", i, n))
        limit = _answer_limit(encoded)
        answers = generate(
            base, adapter, _student_prompts(data), limit, _threads(options), lambda i, n: on_progress("holdout", i, n)
        )
        verdicts = _verdicts(data, answers, score)
        sure, judged = _servable(data, answers, verdicts)
        calibration = calibrate(sure, judged)
        threshold = choose_threshold(
            [apply(calibration.knots, one) for one in sure], judged, settings.router.margin,
            plan=_plan(log, task, settings), of=len(answers),
        )  # fmt: skip
        holdout = _holdout(base, data, options, verdicts, limit, score, on_progress)
        least = settings.router.judged_share if data.evaluator == JUDGE else ALL
        card = _card(data, answers, base, limit) | {"calibration": calibration.knots, "judged_share": least}
        manifest = {
            "task": task, "snapshot": data.snapshot, "base": options.base, "base_sha256": base_identity(base),
            "dtype": compute_dtype(), "settings": asdict(options), "card": card, "evaluator": data.evaluator,
            "read": data.read, "dropped": {**data.dropped, **left_out},
            "trained": {key: value for key, value in asdict(trained).items() if key != "losses"},
            "holdout": asdict(holdout), "threshold": asdict(threshold) if threshold else None,
            "calibration": asdict(calibration),
        }  # fmt: skip
        _write_evidence(folder, data, answers, verdicts, trained)
        bundle = seal(folder, settings.students, manifest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fresh = register(
        log, candidate=bundle.id, task=task, kind="student", evaluator=data.evaluator,
        threshold=threshold.value if threshold else None, margin=settings.router.margin, alpha=settings.router.alpha,
        snapshot=data.snapshot, bundle=str(bundle.path), card=card,
    )  # fmt: skip
    hours = (time.perf_counter() - started) / 3600
    charge(log, "training", hours * settings.money.training_hour, hours, "hour", task=task, model=bundle.id)
    dropped = {**data.dropped, **left_out}
    return Distilled(
        bundle, fresh, data.snapshot, data.read, dropped, len(encoded), trained, data.evaluator, holdout, threshold,
        calibration,
    )  # fmt: skip


def _dataset(log: Log, task: str, settings: Settings) -> _Data:
    options, declared = settings.distiller, settings.router.tasks.get(task, TaskSettings())
    snapshot = log.snapshot()
    rows = [_recorded(*row) for row in log.query(_ROWS.format(version=snapshot), [task, options.max_rows])]
    if not rows:
        raise BadInput(f"task {task!r} has no recorded exchange: `stillroom tasks` lists the ones there are")
    curation: Curation = curate(rows)
    if len(curation.kept) < options.min_exchanges:
        raise Refused(
            f"task {task!r} has {len(curation.kept)} exchanges fit to learn from and {options.min_exchanges} are "
            f"needed (distiller.min_exchanges): record {options.min_exchanges - len(curation.kept)} more"
        )
    parts: Split = split(curation.kept, min(options.holdout, len(curation.kept) // 5))
    answers = [row.answer for row in parts.train]
    evaluator = judge_instead(evaluator_for(declared, [Said(answer) for answer in answers]), settings.judge)
    if evaluator == "tools":
        raise Refused(f"task {task!r} is declared to call tools, and students answer in text: drop its evaluator")
    return _Data(
        snapshot=snapshot,
        read=len(rows),
        dropped=dict(Counter(curation.dropped) + Counter(parts.dropped)),
        train=parts.train,
        holdout=parts.holdout,
        static=static_lines([row.messages for row in parts.train]),
        evaluator=evaluator,
        declared=declared,
        labels=known_labels(answers, declared.aliases) if evaluator == "label" else (),
    )


def _recorded(
    identity: str, ts: Any, request: str, answer: str, status: int, partial: bool, finish: str | None, calls: bool
) -> Recorded:
    body = json.loads(request)
    messages = tuple(body["messages"])
    # A later turn of the same conversation repeats its opening; a single turn has nothing to keep together.
    opening = json.dumps(messages[: _first_user(messages) + 1]) if len(messages) > 2 else None
    return Recorded(identity, ts, messages, answer, status, partial, finish, calls, opening, body)


def _first_user(messages: Sequence[Mapping[str, Any]]) -> int:
    return next((place for place, message in enumerate(messages) if message.get("role") == "user"), 0)


def _encoded(base: Path, data: _Data, options: DistillerSettings) -> tuple[list[Encoded], Counter[str]]:
    """Token ids of the newest rows that fit into the limits, oldest first, and how many did not fit, by reason."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    budget = options.train_tokens // options.epochs if options.train_tokens else None
    encoded: list[Encoded] = []
    left_out: Counter[str] = Counter()
    spent = 0
    for row in reversed(data.train):
        one = encode(tokenizer, student_messages(row.messages, data.static), row.answer)
        length = len(one.input_ids)
        if length > options.max_tokens:
            left_out["too_long"] += 1
        elif budget is not None and spent + length > budget:
            left_out["over_budget"] += 1
        else:
            spent += length
            encoded.append(one)
    if not encoded:
        raise Refused(
            f"no row fits into distiller.max_tokens = {options.max_tokens} and distiller.train_tokens: raise them"
        )
    return encoded[::-1], left_out


def _train_settings(options: DistillerSettings) -> TrainSettings:
    return TrainSettings(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        rank=options.rank,
        alpha=2 * options.rank,
        tokens_per_step=max(512, options.max_tokens),
        max_tokens=options.max_tokens,
        seed=options.seed,
        threads=_threads(options),
        layers=options.layers or None,
    )


def _threads(options: DistillerSettings) -> int:
    return options.threads or os.cpu_count() or 1


def _answer_limit(encoded: Sequence[Encoded]) -> int:
    """Tokens a student may answer with: what the longest taught answer needs, and half as much again."""
    longest = max(len(row.input_ids) - row.prompt_length for row in encoded)
    return longest + longest // 2 + 2


def _student_prompts(data: _Data) -> list[list[dict[str, str]]]:
    return [student_messages(row.messages, data.static) for row in data.holdout]


def _verdicts(data: _Data, answers: Sequence[Generated], score: Score) -> list[float]:
    """An answer that did not end is wrong, and nobody is asked about it."""
    texts = [answer.text if answer.finished else None for answer in answers]
    ended = [(row, text) for row, text in zip(data.holdout, texts, strict=True) if text is not None]
    scores = iter(score([_answered(row, text) for row, text in ended]))
    return [0.0 if text is None else next(scores) for text in texts]


def _answered(row: Recorded, text: str) -> Answered:
    return Answered(row.exchange_id, row.request, row.answer, text)


def _servable(data: _Data, answers: Sequence[Generated], verdicts: Sequence[float]) -> tuple[list[float], list[float]]:
    """Confidences and verdicts of the answers that may go out at all: the others fall back however sure they are.

    Where the first tokens decide all may, as nothing else is known when they do.
    """
    if tokens := data.declared.first_tokens:
        return [confidence(first(one.logprobs, tokens)) for one in answers], list(verdicts)
    labels = frozenset(data.labels)
    fit_to_serve = [answer.finished and well_formed(data.evaluator, Said(answer.text), labels) for answer in answers]
    return [one.confidence for one in compress(answers, fit_to_serve)], list(compress(verdicts, fit_to_serve))


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


def _holdout(
    base: Path,
    data: _Data,
    options: DistillerSettings,
    verdicts: Sequence[float],
    limit: int,
    score: Score,
    on_progress: Report,
) -> Holdout:
    """The student beside the untuned base, which gets the whole instructions, and the most common answer."""
    rows = data.holdout[: options.control_rows]
    whole = [student_messages(row.messages, frozenset()) for row in rows]
    untuned = generate(
        base, None, whole, limit, _threads(options), lambda i, n: on_progress("untuned base as control", i, n)
    )
    common = Counter(row.answer for row in data.train).most_common(1)[0][0]
    held = rows if data.evaluator == JUDGE else data.holdout  # A judge is paid for each, and free text has no majority.
    return Holdout(
        rows=len(verdicts),
        student=_mean(verdicts),
        base=_mean(score([_answered(row, answer.text) for row, answer in zip(rows, untuned, strict=True)])),
        base_rows=len(rows),
        majority=_mean(score([_answered(row, common) for row in held])),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _card(data: _Data, answers: Sequence[Generated], base: Path, limit: int) -> dict[str, Any]:
    """What serving and judging need to know of the student, golden prompts and what was declared included."""
    golden = [
        {"messages": prompt, "text": answer.text}
        for prompt, answer in zip(_student_prompts(data), answers, strict=True)
        if answer.finished
    ][:GOLDEN]
    if not golden:
        raise Refused("the student never ends its answers: train longer (distiller.epochs), or on more exchanges")
    return {
        "base": str(base),
        "static": sorted(data.static),
        "extra_lines": max(extra_lines(row.messages, data.static) for row in [*data.train, *data.holdout]),
        "labels": list(data.labels),
        "aliases": data.declared.aliases,
        "sets": list(data.declared.sets),
        "first_tokens": data.declared.first_tokens,
        "max_tokens": limit,
        "data_until": max(row.ts for row in [*data.train, *data.holdout]).isoformat(),
        "golden": golden,
    }


def _write_evidence(
    folder: Path, data: _Data, answers: Sequence[Generated], verdicts: Sequence[float], trained: Trained
) -> None:
    """Lineage, per-example holdout outputs and the loss curve, as files of the bundle."""
    lineage = {"snapshot": data.snapshot, "exchanges": [row.exchange_id for row in data.train]}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    (folder / "losses.json").write_text(json.dumps(trained.losses))
    with (folder / "holdout.jsonl").open("w", encoding="utf-8") as out:
        for row, answer, verdict in zip(data.holdout, answers, verdicts, strict=True):
            line = {"exchange": row.exchange_id, "teacher": row.answer, **asdict(answer), "verdict": verdict}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
