"""Owns what one student learns from and is first judged on: a task's exchanges at a snapshot, curated and split.

Must not know models or training. What is found once can be had again from the exchanges' ids alone (`again`), as long
as the log still holds them.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distiller.curate import Curation, Recorded, Split, curate, split
from distiller.incumbent import Incumbent, incumbent
from distiller.settings import Settings
from distiller.snapshots import CURRENT, OLDER_SNAPSHOT, Snapshot, outdated, snapshots
from distiller.terms import Terms, check, terms_of
from proxy.errors import BadInput, Refused
from proxy.log import Log
from router.evaluators import evaluator_for, known_labels
from router.judging import judge_instead
from router.prompt import static_lines, student_messages
from router.said import Said
from router.settings import TaskSettings

_COLUMNS = """
id, ts, request, coalesce(answer, ''), status, partial, finish_reason, tool_calls IS NOT NULL, logprobs,
coalesce(answered_model, ''), teacher, lang
"""
_NEWEST = f"""
SELECT {_COLUMNS} FROM exchanges AT (VERSION => {{version}})
WHERE task = ? AND served_by = 'teacher' AND path = '/v1/chat/completions' AND request_encoding = 'utf-8'
ORDER BY id DESC LIMIT ?
"""
_NAMED = f"SELECT {_COLUMNS} FROM exchanges WHERE id IN (SELECT unnest(CAST(? AS VARCHAR[])))"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows to learn from and later ones that judge, both in order of time, and what follows from the former.

    `static` are hashes of the instruction lines a student need not read (`router.prompt`), `labels` the normalised
    labels of a closed set, where the evaluator is for labels. `rationales` say why training rows were answered as they
    were, by exchange; nobody looks for them unless they are wanted.
    """

    task: str
    snapshot: int
    read: int
    dropped: Mapping[str, int]
    train: Sequence[Recorded]
    holdout: Sequence[Recorded]
    static: frozenset[str]
    evaluator: str
    declared: TaskSettings
    labels: tuple[str, ...]
    rationales: Mapping[str, str] = field(default_factory=dict)
    incumbent: Incumbent | None = None
    """The student that answers the task now."""
    snapshots: Sequence[Snapshot] = ()
    """Of the teacher, over all that was read."""
    terms: tuple[Terms, ...] = ()
    """Of those whose answers are in `train`."""

    def asked(self, rows: Sequence[Recorded]) -> list[list[dict[str, str]]]:
        """The rows' prompts as the student is shown them."""
        return [student_messages(row.messages, self.static) for row in rows]


def dataset(log: Log, task: str, settings: Settings) -> Dataset:
    """The newest exchanges of `task`; BadInput where there are none, Refused where too few are fit to learn from."""
    options, declared = settings.distiller, settings.router.tasks.get(task, TaskSettings())
    snapshot, rows = newest(log, task, options.max_rows)
    seen = snapshots(rows)
    fit = [row for row in rows if options.snapshots != CURRENT or not outdated(row, seen)]
    curation: Curation = curate(fit)
    if len(curation.kept) < options.min_exchanges:
        raise Refused(
            f"task {task!r} has {len(curation.kept)} exchanges fit to learn from and {options.min_exchanges} are "
            f"needed (distiller.min_exchanges): record {options.min_exchanges - len(curation.kept)} more"
        )
    parts: Split = split(curation.kept, min(options.holdout, len(curation.kept) // 5))
    answers = [Said(row.answer) for row in parts.train]
    evaluator = judge_instead(evaluator_for(declared, answers), settings.judge)
    if evaluator == "tools":
        raise Refused(f"task {task!r} is declared to call tools, and students answer in text: drop its evaluator")
    dropped = dict(Counter(curation.dropped) + Counter(parts.dropped) + Counter({OLDER_SNAPSHOT: len(rows) - len(fit)}))
    made = _dataset(task, snapshot, len(rows), dropped, parts.train, parts.holdout, evaluator, declared)
    terms = terms_of(parts.train, settings.teacher, options.teacher_terms_ack)
    check(terms, options.terms, options.provider_terms, task)
    return replace(made, incumbent=incumbent(log, task), snapshots=seen, terms=terms)


def newest(log: Log, task: str, most: int) -> tuple[int, list[Recorded]]:
    """The log's snapshot, and at most so many exchanges the teacher answered; BadInput where the task has none."""
    snapshot = log.snapshot()
    rows = [_recorded(*row) for row in log.query(_NEWEST.format(version=snapshot), [task, most])]
    if not rows:
        raise BadInput(f"task {task!r} has no recorded exchange: `stillroom tasks` lists the ones there are")
    return snapshot, rows


def less(data: Dataset, exchanges: Collection[str], reason: str, settings: Settings) -> Dataset:
    """Without these rows to learn from, and what followed from them; `reason` counts them."""
    train = tuple(row for row in data.train if row.exchange_id not in exchanges)
    if len(train) == len(data.train):
        return data
    dropped = dict(Counter(data.dropped) + Counter({reason: len(data.train) - len(train)}))
    made = _dataset(data.task, data.snapshot, data.read, dropped, train, data.holdout, data.evaluator, data.declared)
    terms = terms_of(train, settings.teacher, settings.distiller.teacher_terms_ack)
    return replace(data, dropped=dropped, train=train, static=made.static, labels=made.labels, terms=terms)


def again(
    log: Log, task: str, snapshot: int, train: Sequence[str], holdout: Sequence[str], evaluator: str,
    declared: TaskSettings,
) -> Dataset:  # fmt: skip
    """The dataset of an earlier distillation, from the ids of its exchanges; Refused where some are gone."""
    rows = {row[0]: _recorded(*row) for row in log.query(_NAMED, [[*train, *holdout]])}
    gone = [name for name in (*train, *holdout) if name not in rows]
    if gone:
        raise Refused(
            f"{len(gone)} of the {len(train) + len(holdout)} exchanges are no longer in the log, {gone[0]} for one: "
            "they were erased or are past log.keep_days"
        )
    learned, judged = tuple(rows[name] for name in train), tuple(rows[name] for name in holdout)
    return _dataset(task, snapshot, len(rows), {}, learned, judged, evaluator, declared)


def _dataset(
    task: str, snapshot: int, read: int, dropped: Mapping[str, int], train: Sequence[Recorded],
    holdout: Sequence[Recorded], evaluator: str, declared: TaskSettings,
) -> Dataset:  # fmt: skip
    return Dataset(
        task=task,
        snapshot=snapshot,
        read=read,
        dropped=dropped,
        train=train,
        holdout=holdout,
        static=static_lines([row.messages for row in train]),
        evaluator=evaluator,
        declared=declared,
        labels=known_labels([row.answer for row in train], declared.aliases) if evaluator == "label" else (),
    )


def _recorded(
    identity: str, ts: Any, request: str, answer: str, status: int, partial: bool, finish: str | None, calls: bool,
    logprobs: bytes | None, model: str, teacher: str | None, lang: str | None,
) -> Recorded:  # fmt: skip
    body = json.loads(request)
    messages = tuple(body["messages"])
    # A later turn of the same conversation repeats its opening; a single turn has nothing to keep together.
    opening = json.dumps(messages[: _first_user(messages) + 1]) if len(messages) > 2 else None
    said = (answer, status, partial, finish, calls)
    return Recorded(identity, ts, messages, *said, opening, body, logprobs, model, teacher, lang)


def _first_user(messages: Sequence[Mapping[str, Any]]) -> int:
    return next((place for place, message in enumerate(messages) if message.get("role") == "user"), 0)
