"""Owns checking a certificate: computes it again from the log and says line by line what agrees, then and now.

Must not change anything. It trusts the numbers of a document only after its signature.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.log import Log
from router.certificate import Comparison, comparisons, examples, findings
from router.evidence import audited, evidence
from router.registry import RETIRED, Candidate, candidates
from router.signing import BROKEN, FINE, FOREIGN, UNSIGNED, examine
from router.slices import lagging

_SIGNATURE = {
    FINE: "sound, by the key of this installation",
    BROKEN: "broken: the document was changed after it was signed",
    FOREIGN: "sound, but by another key than that of this installation",
    UNSIGNED: "none: nobody vouches for this document",
}
_COMPUTED = (
    "verdicts", "shadowed", "judged", "failed", "coverage", "coverage_interval", "parity", "path", "ceiling",
    "disagreements",
)  # fmt: skip
CLOSE = 1e-9  # Another version of a numeric library may round otherwise.


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at; `ok` is None where it cannot be told, which is said and refutes nothing."""

    what: str
    ok: bool | None
    said: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All lines and what follows."""

    holds: bool
    conclusion: str
    lines: tuple[Line, ...]


def verify(log: Log, document: Mapping[str, Any], key_file: Path, floor: float) -> Verification:
    """Check signature, computation, and whether what was proved still stands; `floor` is today's slice floor."""
    state = examine(document, key_file)
    lines = [Line("signature", state == FINE, _SIGNATURE[state])]
    if state == FINE:  # Else nobody we trust has said that the rest has the form of a certificate.
        lines += _recomputed(log, document, floor)
    wrong = [line for line in lines if line.ok is False]
    conclusion = f"does not hold: {wrong[0].what}: {wrong[0].said}" if wrong else "holds"
    return Verification(not wrong, conclusion, tuple(lines))


def _recomputed(log: Log, document: Mapping[str, Any], floor: float) -> Iterator[Line]:
    known = {candidate.id: candidate for candidate in candidates(log, document["task"])}
    candidate = known.get(document["candidate"])
    if candidate is None:
        yield Line("candidate", False, "not in this log")
        return
    yield _registered(document, candidate)
    compared, source = _comparisons(log, document)
    gone = document["shadowed"] - len(compared)
    if gone > 0:
        yield Line("verdicts", False, f"{gone} of {document['shadowed']} verdicts are gone: cannot be computed again")
        return
    yield Line("source", True, source)
    p, sliced = document["parity"], document["slices"]
    again = findings(log, compared, p["margin"], p["alpha"], sliced["floor"], candidate.judged_share)
    for name in _COMPUTED:
        if name not in document:  # Of an older program, which had no such figure.
            continue
        same = _alike(again[name], document[name])
        yield Line(name.replace("_", " "), same, "as computed again" if same else "differs from what the log gives")
    yield _same_slices(again["slices"], sliced)
    if "examples" in document:
        yield _same_examples(examples(log, document), document["examples"]["quoted"])
    late = [one for one in sliced["table"] if one["behind"]]
    held = p["proven"] and not late
    yield Line(
        "then", held, f"lower bound {p['lower']:.4f} on {p['n']}, needed {1 - p['margin']:g}; {len(late)} slices behind"
    )
    yield from _now(log, candidate, floor)


def _registered(document: Mapping[str, Any], candidate: Candidate) -> Line:
    said = {
        "kind": document["kind"], "evaluator": document["evaluator"], "threshold": document["threshold"],
        "margin": document["parity"]["margin"], "alpha": document["parity"]["alpha"], "ordinal": document["ordinal"],
        "snapshot": document["training_snapshot"], "judged_share": _judged_share(document),
    }  # fmt: skip
    other = [name for name, value in said.items() if getattr(candidate, name) != value]
    return Line("candidate", not other, f"registered with another {', '.join(other)}" if other else "as registered")


def _judged_share(document: Mapping[str, Any]) -> float:
    """As declared; certificates of before know of none, as all was judged."""
    return (document.get("declared") or {}).get("judged_share") or 1.0


def _comparisons(log: Log, document: Mapping[str, Any]) -> tuple[list[Comparison], str]:
    snapshot, candidate = document["verdict_snapshot"], document["candidate"]
    if log.query("SELECT 1 FROM ducklake_snapshots('lake') WHERE snapshot_id = ?", [snapshot]):
        return comparisons(log, candidate, snapshot=snapshot), f"read at snapshot {snapshot} of the log"
    last = document["verdicts"]["last"]
    return comparisons(log, candidate, until=last), f"snapshot {snapshot} is past retention: read by the verdicts' ids"


def _same_slices(again: Mapping[str, Any], said: Mapping[str, Any]) -> Line:
    gone = again["gone"] - said["gone"]
    if gone:
        return Line("slices", None, f"{gone} exchanges are gone, erased or past retention: cannot be computed again")
    same = _alike(again, said)
    return Line("slices", same, "as computed again" if same else "differ from what the log gives")


def _same_examples(again: list[Any], said: list[Any]) -> Line:
    """An exchange that is gone takes its example with it, and retention the candidate's answer alone."""
    left = {one["verdict_id"]: one for one in again}
    there = [(one, left[one["verdict_id"]]) for one in said if one["verdict_id"] in left]
    if any(one != now for one, now in there):
        return Line("examples", False, "differ from what the log has")
    gone = len(said) - len(there)
    return (
        Line("examples", None, f"{gone} of {len(said)} are gone") if gone else Line("examples", True, "as in the log")
    )


def _now(log: Log, candidate: Candidate, floor: float) -> Iterator[Line]:
    found, later = evidence(log, candidate).parity, audited(log, candidate).parity
    yield Line("now", found.proven, f"lower bound {found.lower:.4f} on {found.n} verdicts of shadow")
    since = f"upper bound {later.upper:.4f} on {later.n} verdicts since its promotion"
    yield Line("audits", not later.refuted, since if later.n else "none yet")
    late = lagging(log, candidate, floor)
    yield Line("slices now", late is None, late or "none far behind")
    stage = f"{candidate.stage}: {candidate.reason}"
    yield Line("stage", candidate.stage != RETIRED, stage)


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers up to CLOSE."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, int | float) and not isinstance(other, bool):
        return abs(one - other) <= CLOSE
    return type(one) is type(other) and bool(one == other)
