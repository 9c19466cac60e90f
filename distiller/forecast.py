"""Owns the forecast for a task: is it worth distilling? From the log alone, before any model is trained.

Every figure says what it rests on, and what cannot be known stays unknown. Must not train a student, fetch a base model
from the network, or write to the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distiller.base_facts import BaseFacts, base_facts
from distiller.conclusion import Conclusion, Facts, conclude
from distiller.curate import Curation, Recorded, Split, curate, split
from distiller.dataset import newest
from distiller.leaves import Place, closed_leaves, joined
from distiller.noise import labels_of
from distiller.payback import Figure, break_even, payback
from distiller.settings import Settings
from distiller.stand_in import Outlook, Score, outlook, part_agreement
from distiller.task_money import per_day, prices, teacher_usd, training_usd
from distiller.traits import Balance, Repeats, balance, languages, repeats
from proxy.log import Log
from router.coverage import Plan
from router.evaluators import evaluator, evaluator_for
from router.judging import judge_instead
from router.said import Said
from router.settings import TaskSettings

HOLDOUT = 0.2  # the latest of the rows
FEWEST = 50  # rows fit to learn from, below which a stand-in says nothing


@dataclass(frozen=True, slots=True)
class Data:
    """What there is: `read` of the newest exchanges, how many are fit to learn from, why the others are not."""

    snapshot: int
    read: int
    fit: int
    train: int
    holdout: int
    dropped: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]
    """Of each reason, ids of exchanges."""
    evaluator: str
    evaluator_basis: str
    labels: Balance | None
    """Of a closed label set."""
    repeats: Repeats
    languages: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Money:
    """US dollars, exchanges a day, weeks."""

    teacher_usd: Figure
    per_day: Figure
    training_usd: Figure
    break_even: Figure
    weeks: Figure


@dataclass(frozen=True, slots=True)
class Forecast:
    """One task's. Agreement and coverage (at 1 - margin) are a stand-in's, on the latest rows."""

    task: str
    conclusion: Conclusion
    data: Data
    agreement: Figure
    coverage: Figure
    proof: Figure
    """Exchanges until the coverage could be proven, at the stand-in's threshold."""
    parts: Mapping[str, Figure]
    """Of JSON answers: how often the stand-in is right on each closed leaf, by its path."""
    curve: str
    base: BaseFacts
    money: Money


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows and what is declared of them."""

    declared: TaskSettings
    curation: Curation
    parts: Split | None
    data: Data


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What the stand-in found, or why there is none."""

    outlook: Outlook | None
    parts: Mapping[str, Figure]
    why: str


def forecast(log: Log, settings: Settings, task: str) -> Forecast:
    """The forecast for `task`; BadInput where it has no recorded exchange, or what is declared of it cannot be."""
    rows = _rows(log, settings, task)
    teacher, rate, training = teacher_usd(log, task), per_day(log, task), training_usd(log, task, settings.money)
    known = prices(teacher, training, settings)
    ahead, base = _ahead(rows, settings, teacher, rate), base_facts(log, rows.curation.kept, settings)
    found, unknown = ahead.outlook, Figure(None, ahead.why)
    coverage = found.coverage if found else unknown
    return Forecast(
        task=task,
        conclusion=conclude(_facts(rows, ahead, base, settings)),
        data=rows.data,
        agreement=found.agreement if found else unknown,
        coverage=coverage,
        proof=found.proof if found else unknown,
        parts=ahead.parts,
        curve=found.curve.words if found else ahead.why,
        base=base,
        money=Money(teacher, rate, training, break_even(coverage, known), payback(coverage, rate, known)),
    )


def _facts(rows: _Rows, ahead: _Ahead, base: BaseFacts, settings: Settings) -> Facts:
    tokens = base.tokens
    return Facts(
        read=rows.data.read,
        fit=rows.data.fit,
        calls=rows.curation.dropped.get("tool_calls", 0),
        needed=settings.distiller.min_exchanges,
        too_long=tokens.too_long / tokens.rows if tokens else None,
        evaluator=rows.data.evaluator,
        margin=settings.router.margin,
        outlook=ahead.outlook,
        why_none=ahead.why,
    )


def _rows(log: Log, settings: Settings, task: str) -> _Rows:
    declared = settings.router.tasks.get(task, TaskSettings())
    snapshot, rows = newest(log, task, settings.distiller.max_rows)
    curation = curate(rows)
    kept = curation.kept
    parts = split(kept, HOLDOUT) if len(kept) >= FEWEST else None
    name, basis = _evaluator(kept, declared, settings)
    data = Data(
        snapshot=snapshot,
        read=len(rows),
        fit=len(kept),
        train=len(parts.train) if parts else 0,
        holdout=len(parts.holdout) if parts else 0,
        dropped={**curation.dropped, **{f"{reason} (in the split)": n for reason, n in _lost(parts).items()}},
        examples=curation.examples,
        evaluator=name,
        evaluator_basis=basis,
        labels=balance(labels_of(kept, declared.aliases)) if name == "label" else None,
        repeats=repeats(curation),
        languages=languages(kept),
    )
    return _Rows(declared, curation, parts, data)


def _lost(parts: Split | None) -> Mapping[str, int]:
    return parts.dropped if parts else {}


def _evaluator(kept: Sequence[Recorded], declared: TaskSettings, settings: Settings) -> tuple[str, str]:
    """Its name, empty where nothing was fit to choose one from, and what it rests on."""
    if not kept and not declared.evaluator:
        return "", "no answer is fit to learn from"
    name = judge_instead(evaluator_for(declared, [Said(row.answer) for row in kept]), settings.judge)
    return name, "declared" if declared.evaluator else f"chosen from {len(kept)} answers"


def _ahead(rows: _Rows, settings: Settings, teacher: Figure, rate: Figure) -> _Ahead:
    """Let the stand-in answer, where the answers are made of closed parts."""
    name, parts = rows.data.evaluator, rows.parts
    if parts is None:
        return _Ahead(None, {}, f"{rows.data.fit} rows fit to learn from, and a stand-in needs {FEWEST}")
    if len(parts.train) < 2 or not parts.holdout:
        return _Ahead(None, {}, "near-duplicates and conversations leave no two sides to learn from and to judge by")
    router, margin = settings.router, settings.router.margin
    plan = Plan(router.alpha, _horizon(rows, rate), router.audit_share, teacher.value)
    if name == "label":
        labels: dict[Place, list[str]] = {(): labels_of(parts.train, rows.declared.aliases)}
        return _Ahead(outlook(parts.train, parts.holdout, labels, _label_score(rows), margin, plan), {}, "")
    if name != "json":
        return _Ahead(None, {}, f"not known before training: the answers ({name}) are no choice from a closed set")
    early, late, others = _leaves(parts)
    told = {_path(place): one for place, one in part_agreement(parts.train, parts.holdout, early, late).items()}
    if others or not early:
        some = ", ".join(_path(place) for place in others[:5])
        return _Ahead(None, told, f"not known before training: {len(others)} leaves hold open values ({some})")
    return _Ahead(outlook(parts.train, parts.holdout, early, _json_score(rows), margin, plan), told, "")


def _horizon(rows: _Rows, rate: Figure) -> int:
    """As many exchanges to come as were read, or those of thirty days where that is more."""
    return max(rows.data.read, round(30 * (rate.value or 0.0)))


def _leaves(parts: Split) -> tuple[dict[Place, list[str]], dict[Place, list[str]], list[Place]]:
    """The closed leaves of train and of holdout answers, and the others."""
    found, others = closed_leaves([row.answer for row in (*parts.train, *parts.holdout)])
    cut = len(parts.train)
    early, late = ({place: values[side] for place, values in found.items()} for side in (slice(cut), slice(cut, None)))
    return early, late, others


def _path(place: Place) -> str:
    return ".".join(place) or "(the whole answer)"


def _label_score(rows: _Rows) -> Score:
    judge = evaluator("label", rows.declared.aliases)
    return lambda row, parts: judge(row.request, Said(row.answer), Said(parts[()]))


def _json_score(rows: _Rows) -> Score:
    judge = evaluator("json", sets=rows.declared.sets)
    return lambda row, parts: judge(row.request, Said(row.answer), Said(joined(parts)))
