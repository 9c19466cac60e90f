"""Owns what the page of a task shows of its candidates: bounds over time, coverage and risk, slices, disagreements.

Everything is read from the log and computed by the router's own functions; of a candidate that was promoted, what its
certificate says is taken from there. Must not judge, act, or know how a page looks.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import nan
from pathlib import Path
from typing import Any

from distiller.dashboard.differing import Difference, difference
from distiller.settings import Settings
from proxy.errors import BadInput
from proxy.log import Log
from proxy.rollups import query
from router.bids import Bid, bids, cheapest
from router.calibration import apply
from router.certificate import bounds, comparisons, examples, findings
from router.confidence import confidence, first
from router.coverage import Risk, risk_curve
from router.evaluators import JUDGE
from router.evidence import later, lenient
from router.freezes import Freeze, frozen
from router.lifecycle import standing
from router.registry import CANARY, LIVE, RETIRED, STUDENT, Candidate, candidates, certificate_of
from router.verdicts import COUNTED

SHOWN = 10  # disagreements
FRESH = 60.0  # seconds
HOLDOUT = "holdout.jsonl"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Both bounds after `n` verdicts, and when the last of them was reached; None where it is not in the log."""

    n: int
    ts: datetime | None
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Worst:
    """One disagreement; the texts are None where the exchange was erased or is past retention."""

    verdict: float
    confidence: float | None
    exchange: str | None = None
    asked: str | None = None
    teacher: str | None = None
    candidate: str | None = None
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One transition; `certified` is whether a certificate came with it."""

    ts: datetime
    candidate: str
    stage_from: str
    stage_to: str
    share: float | None
    reason: str
    certified: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """What the verdicts of one candidate say, as its certificate does; `issued` is when that was written, if it was."""

    parity: Mapping[str, Any]
    issued: datetime | None
    coverage: float
    coverage_interval: Sequence[float]
    shadowed: int
    path: tuple[Bounds, ...]
    slices: Mapping[str, Any]
    worst: tuple[Worst, ...]

    @property
    def bar(self) -> float:
        """What the lower bound has to pass."""
        return 1 - float(self.parity["margin"])

    @property
    def dated(self) -> bool:
        """Whether it is known of every bound when it was reached."""
        return all(one.ts for one in self.path)


@dataclass(frozen=True, slots=True)
class Curves:
    """What each threshold covers and how much of that is wrong, on shadow verdicts and on the student's holdout.

    `at` is the certified threshold, as the shadow verdicts have it.
    """

    shadow: tuple[Risk, ...]
    at: Risk | None
    holdout: tuple[Risk, ...]


@dataclass(frozen=True, slots=True)
class View:
    """One task: all its candidates, and of the one that is looked at everything there is."""

    task: str
    frozen: Freeze | None
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    standing: Mapping[str, Any]
    proof: Proof | None
    after: tuple[Bounds, ...]
    """Bounds over what came after promotion; `after_bar` is what the lower one has to pass there."""
    after_bar: float
    curves: Curves
    moves: tuple[Move, ...]
    offers: tuple[Bid, ...]
    cheapest: str | None


def view(log: Log, settings: Settings, task: str, named: str = "") -> View:
    """The task with the candidate `named`, or who answers it, or the newest; BadInput where there is no such."""
    known = candidates(log, task)
    # The sums also know a task whose exchanges are all past retention.
    if not known and not query(log, "SELECT 1 FROM hours WHERE task = $task LIMIT 1", {"task": task}):
        raise BadInput(f"there is no task {task!r} in the log")
    chosen = _chosen(known, named)
    floor, found = settings.router.slice_floor, bids(log, task, settings.router.slice_floor)
    best = cheapest(found)
    return View(
        task=task,
        frozen=frozen(log).get(task),
        candidates=tuple(known),
        chosen=chosen,
        standing=standing(log, chosen, settings.router) if chosen else {},
        proof=proof(log, chosen, floor) if chosen else None,
        after=after(log, chosen) if chosen else (),
        after_bar=1 - lenient(log, chosen) if chosen else 0.0,
        curves=curves(log, chosen) if chosen else Curves((), None, ()),
        moves=moves(log, task),
        offers=tuple(found),
        cheapest=best.candidate.id if best else None,
    )


def mark(log: Log, task: str, now: float) -> Hashable:
    """Differs when `view` has something new to show, and once a while, as exchanges come: it takes long to compute.

    What was erased has other exchanges' names in its verdicts, so that it is not quoted a moment longer.
    """
    ((verdicts, last, gold, named),) = log.query(
        "SELECT count(*), max(id), count(gold), sum(hash(exchange)) FROM verdicts WHERE task = ?", [task]
    )
    ((moved,),) = log.query("SELECT max(id) FROM transitions WHERE task = ?", [task])
    ((frozen_,),) = log.query("SELECT max(id) FROM freezes WHERE task = ?", [task])
    return verdicts, last, gold, named, moved, frozen_, now // FRESH


def _chosen(known: Sequence[Candidate], named: str) -> Candidate | None:
    if named:
        found = [one for one in known if one.id == named]
        if not found:
            raise BadInput(f"this task has no candidate {named!r}")
        return found[0]
    ranks = {LIVE: 2, CANARY: 2, RETIRED: 0}
    return max(known, key=lambda one: (ranks.get(one.stage, 1), one.ordinal), default=None)


def proof(log: Log, candidate: Candidate, floor: float) -> Proof:
    """As the certificate has it, or as it would be written now."""
    stored = certificate_of(log, candidate.id)
    said: Mapping[str, Any] = stored or {}
    if "path" not in said or "disagreements" not in said:  # None yet, or one of before certificates had these.
        compared = comparisons(log, candidate.id)
        said = findings(log, compared, candidate.margin, candidate.alpha, floor, candidate.judged_share)
    issued = datetime.fromisoformat(stored["issued_at"]) if stored else None
    return Proof(
        parity=said["parity"],
        issued=issued,
        coverage=said["coverage"],
        coverage_interval=said["coverage_interval"],
        shadowed=said["shadowed"],
        path=_path(log, candidate, said["path"]["points"]),
        slices=said["slices"],
        worst=worst(log, said),
    )


def _path(log: Log, candidate: Candidate, points: Sequence[Sequence[float]]) -> tuple[Bounds, ...]:
    covered = "SELECT ts FROM verdicts WHERE candidate = ? AND kind = 'shadow' AND covered ORDER BY id"
    return _dated(points, [ts for (ts,) in log.query(covered, [candidate.id])])


def _dated(points: Sequence[Sequence[float]], times: Sequence[datetime]) -> tuple[Bounds, ...]:
    found = []
    for n, lower, upper in points:
        place = int(n)
        found.append(Bounds(place, times[place - 1] if place <= len(times) else None, lower, upper))
    return tuple(found)


def after(log: Log, candidate: Candidate) -> tuple[Bounds, ...]:
    """The bounds over audits, what was held back, and golden verdicts; empty where nothing came yet."""
    scores = [score for _, score in later(log, candidate)]
    if not scores:
        return ()
    return _dated(bounds(scores, [nan] * len(scores), candidate.alpha, 1.0)["points"], ())


def worst(log: Log, said: Mapping[str, Any]) -> tuple[Worst, ...]:
    """The most harmful disagreements of a certificate, quoted from the log as far as they are still there."""
    shown = said["disagreements"][:SHOWN]
    quoted = {one["verdict_id"]: one for one in examples(log, {"disagreements": shown})}
    found = []
    for one in shown:
        texts = quoted.get(one["verdict_id"])
        if texts is None:
            found.append(Worst(one["verdict"], one["confidence"]))
            continue
        teacher, candidate = texts["teacher"], texts["candidate"]
        apart = difference(teacher or "", candidate or "")
        where = texts["exchange"], texts["input"], teacher, candidate, apart
        found.append(Worst(one["verdict"], one["confidence"], *where))
    return tuple(found)


def curves(log: Log, candidate: Candidate) -> Curves:
    """Coverage and risk; a hosted model, which is always sure, has one point."""
    rows = log.query(
        f"SELECT confidence, {COUNTED}, covered FROM verdicts WHERE candidate = ? AND kind = 'shadow' ORDER BY id",
        [candidate.id],
    )
    # Below the threshold a judge is not asked: what is known of those is nothing.
    known = [row for row in rows if row[0] is not None and row[1] is not None]
    known = [row for row in known if row[2] or candidate.evaluator != JUDGE]
    shadow = risk_curve([sure for sure, *_ in known], [score for _, score, _ in known], of=len(rows) or None)
    covered = [score for _, score, is_covered in rows if is_covered]
    at = None
    if covered:
        risk = min(1.0, max(0.0, 1 - sum(covered) / len(covered)))
        at = Risk(candidate.threshold or 0.0, len(covered) / len(rows), risk, len(covered))
    return Curves(tuple(shadow), at, tuple(_holdout(candidate)))


def _holdout(candidate: Candidate) -> list[Risk]:
    """Of the student's own holdout, on the scale of its calibration; empty where its folder is not here."""
    place = Path(candidate.bundle) / HOLDOUT
    if candidate.kind != STUDENT or not place.is_file():
        return []
    lines = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    knots = tuple((sure, probability) for sure, probability in candidate.card.get("calibration", ()))
    tokens = int(candidate.card.get("first_tokens", 0))
    ended = [line for line in lines if line["finished"] or tokens]
    sure = [confidence(first(line["logprobs"], tokens)) if tokens else line["confidence"] for line in ended]
    return risk_curve([apply(knots, one) for one in sure], [line["verdict"] for line in ended], of=len(lines) or None)


def moves(log: Log, task: str) -> tuple[Move, ...]:
    """Every change of stage, the newest first."""
    rows = log.query(
        "SELECT ts, candidate, stage_from, stage_to, share, reason, certificate IS NOT NULL FROM transitions "
        "WHERE task = ? ORDER BY id DESC",
        [task],
    )
    return tuple(Move(*row) for row in rows)
