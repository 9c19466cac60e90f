"""Owns what the verdicts say: parity of the certified part, and its coverage.

The certified thing is the policy "candidate where it is sure enough, teacher below": only covered verdicts enter the
parity test, and the threshold was fixed before the first of them. Must not act; `router.lifecycle` does.
"""

from dataclasses import dataclass

from proxy.log import Log
from router.coverage import coverage_interval
from router.parity import Parity, parity
from router.registry import Candidate


@dataclass(frozen=True, slots=True)
class Evidence:
    """Shadow evidence of one candidate: `coverage` is the share of shadowed exchanges at or above the threshold."""

    parity: Parity
    shadowed: int
    failed: int
    coverage: float
    coverage_low: float
    coverage_high: float


def evidence(log: Log, candidate: Candidate) -> Evidence:
    """Judge the shadow verdicts in the order in which they were reached, with the candidate's own margin and alpha."""
    rows = log.query(
        "SELECT verdict, covered, error IS NOT NULL FROM verdicts WHERE candidate = ? AND kind = 'shadow' ORDER BY id",
        [candidate.id],
    )
    covered = [verdict for verdict, is_covered, _ in rows if is_covered]
    low, high = coverage_interval(len(covered), len(rows), candidate.alpha)
    return Evidence(
        parity=parity(covered, candidate.margin, candidate.alpha),
        shadowed=len(rows),
        failed=sum(failed for *_, failed in rows),
        coverage=len(covered) / len(rows) if rows else 0.0,
        coverage_low=low,
        coverage_high=high,
    )


def audit(log: Log, candidate: Candidate) -> Parity:
    """Judge the audit verdicts: the same statistic, after promotion; what the teacher would not answer is none."""
    rows = log.query(
        "SELECT verdict FROM verdicts WHERE candidate = ? AND kind = 'audit' AND covered ORDER BY id", [candidate.id]
    )
    return parity([row[0] for row in rows], candidate.margin, candidate.alpha)


def in_words(candidate: Candidate, found: Evidence) -> str:
    """One honest line: certified, not yet and how many more, or not with this student."""
    p = found.parity
    needed = f"{1 - p.margin:g}"
    if p.mean is None:
        return f"not yet: no covered exchange of {found.shadowed} compared; about {p.more} covered ones prove {needed}"
    figures = f"agreement {p.mean:.3f}, bounds {p.lower:.3f}..{p.upper:.3f} on {p.n} covered exchanges"
    if p.proven:
        return f"certified: {figures}, at least {needed} proved; covers {found.coverage:.0%} of the task"
    if p.refuted:
        return f"not yet: {figures}; {needed} is ruled out for this student: retrain on more exchanges"
    if p.more is None:
        return f"not yet: {figures}; at this agreement no number of exchanges proves {needed}: retrain on more"
    more = round(p.more / found.coverage) if found.coverage else p.more
    return f"not yet: {figures}; about {more} more exchanges of this task to prove {needed}"
