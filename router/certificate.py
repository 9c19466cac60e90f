"""Owns the certificate: the document that says what was proved of a candidate, with all it takes to compute it again.

Must not judge anew, act, or know keys: `router.verification` checks it, `router.signing` signs it. What is stored with
a transition quotes no traffic: disagreements are named by their verdict's id, tenants by a number, so an erasure or
retention leaves nothing behind in it. The version that is written for people may quote them, from the log.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import nan
from typing import Any

import numpy as np

from proxy.errors import BadInput
from proxy.log import Log
from router.coverage import coverage_interval
from router.evaluators import JUDGE
from router.judging import calibration_of, judges_of, missing
from router.parity import lower_path, parity, upper_path, widened
from router.registry import HOSTED, Candidate
from router.signing import canonical
from router.slices import slices
from router.verdicts import COUNTED, SCORE, YARDSTICK

Sign = Callable[[Mapping[str, Any]], Mapping[str, Any]]

FORMAT = "stillroom certificate 1"
WORST = 20  # disagreements named
POINTS = 200  # of the path at most
VISIBLE = 0.005  # change of a bound that makes a point of the path
QUOTED = 600  # characters of an input or an answer
_NOTE = (
    f"These examples quote recorded traffic, redacted as it was when recorded, up to {QUOTED} characters each: "
    "share accordingly. `stillroom certificate TASK --without-examples` leaves them out."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One shadow verdict as the certificate reads it."""

    id: str
    exchange: str
    verdict: float | None
    covered: bool
    failed: bool
    confidence: float | None
    yardstick: float | None
    share: float | None
    counted: float
    """In a mean, by the share it was drawn with."""


def certificate(log: Log, candidate: Candidate, floor: float) -> dict[str, Any]:
    """The document to store, computed from the shadow verdicts of one snapshot; `floor` is `[router] slice_floor`."""
    snapshot = log.snapshot()
    compared = comparisons(log, candidate.id, snapshot=snapshot)
    found = findings(log, compared, candidate.margin, candidate.alpha, floor, candidate.judged_share)
    return {
        "format": FORMAT,
        "task": candidate.task,
        "candidate": candidate.id,
        "kind": candidate.kind,
        "hosted": {key: candidate.card.get(key) for key in ("model", "url")} if candidate.kind == HOSTED else None,
        "issued_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "claim": _claim(candidate, found["parity"]["ceiling"]),
        "evaluator": candidate.evaluator,
        "threshold": candidate.threshold,
        "ordinal": candidate.ordinal,
        "training_snapshot": candidate.snapshot,
        "verdict_snapshot": snapshot,
        "declared": {key: candidate.card.get(key) for key in ("aliases", "sets", "first_tokens", "judged_share")},
        "judge": _judge(log, candidate),
        **found,
    }


def _claim(candidate: Candidate, ceiling: float | None) -> str:
    agrees = f"agrees with the teacher on at least {100 * (1 - candidate.margin):g} % of the task"
    if ceiling is not None:
        agrees = (
            f"agrees with the teacher at most {100 * candidate.margin:g} % of the task less than the teacher, asked "
            f"again, agrees with itself"
        )
    how_sure = f"with error rate {candidate.alpha:g} however often this is looked at"
    return f"where it answers, {candidate.id} {agrees}, {how_sure}"


def _judge(log: Log, candidate: Candidate) -> dict[str, Any] | None:
    """Who judged, with the figures of its calibration for this task; None where an evaluator scored."""
    if candidate.evaluator != JUDGE:
        return None
    tried = {name: calibration_of(log, name, candidate.task) for name in judges_of(log, candidate.id)}
    return {
        "missing": missing(log, candidate.id)[0],
        "calibrations": [{"judge": name, "found": asdict(said) if said else None} for name, said in tried.items()],
    }


def findings(
    log: Log, compared: Sequence[Comparison], margin: float, alpha: float, floor: float, least: float
) -> dict[str, Any]:
    """The part of the document that follows from the verdicts, as plain JSON values; `least` as for `router.parity`."""
    covered = [one for one in compared if one.covered]
    scores = [one.counted for one in covered]
    yardsticks = [nan if one.yardstick is None else one.yardstick for one in covered]
    measured = [one.yardstick for one in covered if one.yardstick is not None]
    judged = [(one.exchange, one.counted) for one in covered]
    found = {
        "verdicts": {
            "first": compared[0].id if compared else None,
            "last": compared[-1].id if compared else None,
            "sha256": _digest(compared),
        },
        "shadowed": len(compared),
        "judged": sum(one.verdict is not None for one in covered),
        "failed": sum(one.failed for one in compared),
        "coverage": len(covered) / len(compared) if compared else 0.0,
        "coverage_interval": coverage_interval(len(covered), len(compared), alpha),
        "parity": asdict(parity(scores, margin, alpha, yardsticks, least)),
        "path": _path(scores, yardsticks, alpha, least),
        "slices": _slices(log, judged, widened(margin, measured), alpha, floor, least),
        "ceiling": {
            "measured": len(measured),
            "mean": float(np.mean(measured)) if measured else None,
        },
        "disagreements": _worst(covered),
    }
    plain: dict[str, Any] = json.loads(canonical(found))
    return plain


def comparisons(log: Log, candidate: str, *, snapshot: int | None = None, until: str | None = None) -> list[Comparison]:
    """Shadow verdicts in the order in which they were reached: of a snapshot of the log, or up to a verdict's id."""
    version = "" if snapshot is None else f"AT (VERSION => {snapshot:d})"
    rows = log.query(
        f"SELECT id, exchange, {SCORE}, covered, error IS NOT NULL, confidence, {YARDSTICK}, share, {COUNTED} "
        f"FROM verdicts {version} "
        "WHERE candidate = $candidate AND kind = 'shadow' AND ($until IS NULL OR id <= $until) ORDER BY id",
        {"candidate": candidate, "until": until},
    )
    return [Comparison(*row) for row in rows]


def with_examples(log: Log, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored document with its disagreements quoted from the log, still to be signed."""
    return {**stored, "examples": {"note": _NOTE, "quoted": examples(log, stored)}}


def examples(log: Log, stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Input and both answers of each disagreement whose exchange is still in the log, the most harmful first."""
    wanted = [one["verdict_id"] for one in stored["disagreements"]]
    rows = log.query(
        "SELECT v.id, e.id, e.request, e.answer, v.answer FROM verdicts v JOIN exchanges e ON e.id = v.exchange "
        "WHERE v.id IN (SELECT unnest(CAST(? AS VARCHAR[])))",
        [wanted],
    )
    quoted = {
        identity: {
            "verdict_id": identity,
            "exchange": exchange,
            "input": _excerpt(_last_message(request)),
            "teacher": _excerpt(teacher),
            "candidate": _excerpt(answer),
        }
        for identity, exchange, request, teacher, answer in rows
    }
    return [quoted[identity] for identity in wanted if identity in quoted]


def read_certificate(text: str) -> dict[str, Any]:
    """The document in a file; BadInput where it is none."""
    if text.lstrip().startswith("<"):
        raise BadInput("this is the page for reading: verify the JSON that `stillroom certificate --output` writes")
    try:
        document = json.loads(text, object_pairs_hook=_unambiguous)
        canonical(document)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"this is no certificate, as it is not sound JSON: {error}") from None
    if not isinstance(document, dict) or not {"task", "candidate", "parity"} <= document.keys():
        raise BadInput("this is no certificate: write one with `stillroom certificate TASK --output FILE`")
    return document


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal names they take, and the signature speaks for one only."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _digest(compared: Sequence[Comparison]) -> str:
    """Of all that the proof rests on; the exchange is left out, since an erasure replaces it."""
    rows = [
        [one.id, one.verdict, one.covered, one.failed, one.confidence, one.yardstick, *_weight(one)] for one in compared
    ]
    return hashlib.sha256(canonical(rows)).hexdigest()


def _weight(one: Comparison) -> list[float]:
    return [] if one.share is None else [one.share]


def _path(scores: Sequence[float], yardsticks: Sequence[float], alpha: float, least: float) -> dict[str, Any]:
    """[n, lower, upper] wherever a bound has moved by `step` since the last point, and at the end."""
    if not scores:
        return {"step": VISIBLE, "points": []}
    both = (path(scores, alpha, yardsticks, least) for path in (lower_path, upper_path))
    bounds = np.column_stack(list(both))
    step, kept = VISIBLE, list(range(len(scores) + POINTS))
    while len(kept) > POINTS:
        kept, last = [], np.array([-1.0, 2.0])
        for position, now in enumerate(bounds):
            if np.abs(now - last).max() >= step or position == len(bounds) - 1:
                kept.append(position)
                last = now
        step *= 2
    return {"step": step / 2, "points": [[position + 1, *bounds[position].tolist()] for position in kept]}


def _slices(
    log: Log, judged: Sequence[tuple[str, float]], margin: float, alpha: float, floor: float, least: float
) -> dict[str, Any]:
    found = slices(log, judged, margin, alpha, floor, least)
    tenants = [one.value for one in found.table if one.facet == "tenant"]
    table = [
        asdict(one) | ({"value": f"tenant {tenants.index(one.value) + 1}"} if one.facet == "tenant" else {})
        for one in found.table
    ]
    return {"floor": floor, "alpha_each": alpha / max(len(table), 1), "gone": found.gone, "table": table}


def _worst(covered: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The most harmful: worst verdict first, then where the candidate was surest."""
    wrong = [(one.verdict, one) for one in covered if one.verdict is not None and one.verdict < 1]
    wrong.sort(key=lambda found: (found[0], -(found[1].confidence or 0.0), found[1].id))
    return [{"verdict_id": one.id, "verdict": said, "confidence": one.confidence} for said, one in wrong[:WORST]]


def _last_message(request: str | None) -> str | None:
    """What was asked last; the whole body where it has no such message as text."""
    try:
        content = json.loads(request or "")["messages"][-1]["content"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return request
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _excerpt(text: str | None) -> str | None:
    if text is None:
        return None
    sound = text.encode("utf-8", "replace").decode()  # JSON can spell half a character.
    return sound if len(sound) <= QUOTED else f"{sound[:QUOTED]}\u2026"
