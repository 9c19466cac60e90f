"""Owns what the verdicts say: parity of the certified part, and its coverage.

The certified thing is the policy "candidate where it is sure enough, teacher below": only covered verdicts enter the
parity test, and the threshold was fixed before the first of them. Must not act; `router.lifecycle` does.
"""

from dataclasses import dataclass
from math import nan

from proxy.log import Log
from router.coverage import coverage_interval
from router.drift import Drift, drifted
from router.golden import CHANGE
from router.parity import Parity, parity, widened
from router.registry import STUDENT, Candidate
from router.shadow import waiting
from router.verdicts import COUNTED, SCORE, YARDSTICK

SHORTEST = 1 / 24  # days over which a pace is taken: a burst is no rate
_COMPARABLE = """
path = '/v1/chat/completions' AND task = $task AND served_by = 'teacher' AND status = 200 AND NOT partial
AND finish_reason = 'stop' AND answer IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """Exchanges of a task that a candidate can be compared on: not compared yet, and new ones a day."""

    waiting: int
    per_day: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Shadow evidence of one candidate: `coverage` is the share of shadowed exchanges at or above the threshold."""

    parity: Parity
    shadowed: int
    judged: int
    """Covered ones that have a verdict; the others were passed over by `router.sampling`."""
    failed: int
    coverage: float
    coverage_low: float
    coverage_high: float


@dataclass(frozen=True, slots=True)
class Audited:
    """Evidence after promotion: `drift` watches for a fall that a bound on all of it would be slow to see."""

    parity: Parity
    drift: Drift


def evidence(log: Log, candidate: Candidate) -> Evidence:
    """Judge the shadow verdicts in the order in which they were reached, with the candidate's own margin and alpha."""
    rows = log.query(
        f"SELECT {COUNTED}, {YARDSTICK}, covered, error IS NOT NULL, verdict IS NULL FROM verdicts "
        "WHERE candidate = ? AND kind = 'shadow' "
        "ORDER BY id",
        [candidate.id],
    )
    counted = [row for row in rows if row[2]]
    covered = [score for score, *_ in counted]
    yardsticks = [nan if yardstick is None else yardstick for _, yardstick, *_ in counted]
    low, high = coverage_interval(len(covered), len(rows), candidate.alpha)
    return Evidence(
        parity=parity(covered, candidate.margin, candidate.alpha, yardsticks, candidate.judged_share),
        shadowed=len(rows),
        judged=sum(not passed_over for *_, passed_over in counted),
        failed=sum(failed for *_, failed, _ in rows),
        coverage=len(covered) / len(rows) if rows else 0.0,
        coverage_low=low,
        coverage_high=high,
    )


def audited(log: Log, candidate: Candidate) -> Audited:
    """Judge what came after promotion by the same statistic: audits, what was held back, and golden verdicts.

    What the teacher would not answer, or the candidate would have left to it, is no verdict. These verdicts have no
    yardsticks of their own, so the margin is widened by what the teacher lacked of agreeing with itself in shadow: an
    estimate, where the proof before it was paired.
    """
    rows = log.query(
        f"SELECT id, {SCORE} AS score FROM verdicts "
        "WHERE candidate = $candidate AND kind IN ('audit', 'holdback') AND covered "
        f"UNION ALL {CHANGE} ORDER BY id",
        {"candidate": candidate.id},
    )
    verdicts, margin = [score for _, score in rows], lenient(log, candidate)
    return Audited(parity(verdicts, margin, candidate.alpha), drifted(verdicts, 1 - margin))


def lenient(log: Log, candidate: Candidate) -> float:
    """The candidate's margin, for verdicts without yardsticks: widened by what the teacher wavered in shadow."""
    rows = log.query(
        "SELECT yardstick FROM verdicts WHERE candidate = ? AND kind = 'shadow' AND covered AND yardstick IS NOT NULL",
        [candidate.id],
    )
    return widened(candidate.margin, [yardstick for (yardstick,) in rows])


def pace(log: Log, candidate: Candidate) -> Pace:
    """What there is to compare: waiting already, and coming in a day, over the last week or since the task began."""
    ((recent, days),) = log.query(
        f"""SELECT count(*), epoch(now() - min(ts)) / 86400 FROM exchanges
        WHERE {_COMPARABLE} AND ts > now() - INTERVAL 7 DAYS""",
        {"task": candidate.task},
    )
    return Pace(waiting(log, candidate), recent / max(days, SHORTEST) if recent else 0.0)


def in_words(candidate: Candidate, found: Evidence, coming: Pace | None = None) -> str:
    """One honest line: certified, not yet and how many more (and with a pace: how long), or not with this student."""
    p = found.parity
    needed = f"{1 - p.margin:g}"
    remedy = "retrain on more exchanges" if candidate.kind == STUDENT else "declare another model"
    if p.mean is None:
        return f"not yet: no covered exchange of {found.shadowed} compared; about {p.more} covered ones prove {needed}"
    own = (
        "" if p.ceiling is None else f" relative to the teacher's own {p.ceiling:.3f} (asked again {p.measured} times)"
    )
    some = "" if found.judged == p.n else f", {found.judged} of them judged"
    figures = f"agreement{own} {p.mean:.3f}, bounds {p.lower:.3f}..{p.upper:.3f} on {p.n} covered exchanges{some}"
    if p.proven:
        return f"certified: {figures}, at least {needed} proved; covers {found.coverage:.0%} of the task"
    if p.refuted:
        return f"not yet: {figures}; {needed} is ruled out for this one: {remedy}"
    if p.more is None:
        return f"not yet: {figures}; at this agreement no number of exchanges proves {needed}: {remedy}"
    more = round(p.more / found.coverage) if found.coverage else p.more
    when = "" if coming is None else _when(more, coming)
    return f"not yet: {figures}; about {more} more exchanges of this task to prove {needed}{when}"


def _when(more: int, coming: Pace) -> str:
    if more <= coming.waiting:
        return ", which are there and wait to be compared"
    if not coming.per_day:
        return "; none came in the last seven days"
    days = (more - coming.waiting) / coming.per_day
    length = f"{days:.0f} days" if days >= 1.5 else f"{max(1, round(24 * days))} hours"
    return f": {length} at the present rate of {coming.per_day:,.0f} a day"
