"""Owns the guardrails of a candidate that answers clients: failures, broken formats, slowness, lengths that drift.

Each is a plain function from counts to a reason in words, or None; the counts come from the log alone. Must not know
what follows from a reason: `router.lifecycle` does.

Lengths and latencies are compared by the exceedance test (Epstein 1954, "Tables for the distribution of the number of
exceedances", Ann. Math. Stat. 25(4)): how many of n answers lie beyond the r-th most extreme of m others is exactly
distributed when both come from one distribution, whatever that is, and rarer still with ties.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom, hypergeom

from proxy.log import Log
from router.candidates import MALFORMED, TOO_LONG, UNREACHABLE, UNSURE
from router.registry import Candidate
from router.settings import RouterSettings

# Tries the guardrails look back on: enough to see a rate, few enough that a student which breaks late is seen soon.
GUARDED = 200
# Chance that one such window retires a candidate that is just good enough; every exchange is a new look. It supposes
# answers that do not depend on each other: a minute in which all are slow counts as what it looks like.
GUARD_ALPHA = 1e-6
# The share of the others' answers that counts as extreme: the teacher's slowest, the candidate's own longest in shadow.
SLOWEST, LONGEST = 0.05, 0.01
TEACHERS = 1000  # latest answers of the teacher that say how long it takes


@dataclass(frozen=True, slots=True)
class Tried:
    """Latest exchanges of a stage that the candidate answered, and those it failed at (being unsure is none)."""

    answered: int
    failed: int
    malformed: int = 0
    """Failures that were answers in another format than the task's."""

    @property
    def all(self) -> int:
        """Answered and failed."""
        return self.answered + self.failed


@dataclass(frozen=True, slots=True)
class Beyond:
    """How many of `n` values lie beyond the `rank`-th most extreme of `others` values."""

    beyond: int
    n: int
    rank: int
    others: int

    @property
    def chance(self) -> float:
        """Of so many or more, if all values come from one distribution."""
        if not self.beyond:
            return 1.0
        # So many lie beyond exactly when fewer than `rank` others are among the top (beyond + rank - 1) of all.
        drawn = self.beyond + self.rank - 1
        return float(hypergeom.cdf(self.rank - 1, self.others + self.n, self.others, drawn))


def beyond(values: Sequence[float], others: Sequence[float], share: float) -> Beyond:
    """Count the values above the largest `share` of the others."""
    if not others:
        return Beyond(0, len(values), 0, 0)
    rank = math.ceil(share * len(others))
    limit = sorted(others)[-rank]
    return Beyond(sum(value > limit for value in values), len(values), rank, len(others))


def failing(tried: Tried, most: float, stage: str) -> str | None:
    """More failures than a share of `most` explains (binomial tail below GUARD_ALPHA).

    Five tries that all fail are enough at `most` = 0.05, so that clients do not wait for a candidate that times out.
    """
    return failed(tried, stage) if binom.sf(tried.failed - 1, tried.all, most) < GUARD_ALPHA else None


def failed(tried: Tried, stage: str) -> str:
    """The failures in words."""
    form = f", {tried.malformed} of them by breaking the format" if tried.malformed else ""
    return f"{tried.failed} of the latest {tried.all} {stage} exchanges failed{form}"


def slow(late: Beyond, most: float) -> str | None:
    """More answers than chance gives took longer than `most` times the teacher's slowest twentieth."""
    if late.chance >= GUARD_ALPHA:
        return None
    return (
        f"{late.beyond} of the latest {late.n} answers took more than {most:g} times the 95th percentile of the "
        f"teacher's latest {late.others}"
    )


def drifted(longer: Beyond, shorter: Beyond) -> str | None:
    """More answers than chance gives are longer, or shorter, than nearly all certified ones were."""
    for found, word in ((longer, "longer"), (shorter, "shorter")):
        if found.chance < GUARD_ALPHA:
            return (
                f"the length of answers drifted: {found.beyond} of the latest {found.n} are {word} than 99 % of the "
                f"{found.others} that were certified in shadow"
            )
    return None


def troubled(log: Log, candidate: Candidate, done: Tried, settings: RouterSettings) -> str | None:
    """The first guardrail that a canary or live candidate breaks, in words."""
    if reason := failing(done, settings.max_failures, candidate.stage):
        return reason
    if settings.max_slowdown:
        took, usual = _latencies(log, candidate)
        late = beyond([value / settings.max_slowdown for value in took], usual, SLOWEST)
        if reason := slow(late, settings.max_slowdown):
            return reason
    now, then = _lengths(log, candidate)
    return drifted(beyond(now, then, LONGEST), beyond([-n for n in now], [-n for n in then], LONGEST))


def tried(log: Log, candidate: Candidate, latest: int) -> Tried:
    """A failure shows in the log as a teacher's answer with a fallback; only this task's, since its step began.

    None where the student was unsure, or the client allowed it fewer tokens than it needs: no client can retire it so.
    Or as an answer that flowed and broke off, unless it was the client that left.

    An engine that is gone is no failure of the candidate: its route goes with it, and comes back with it.
    """
    ((answered, failures, malformed),) = log.query(
        """
        WITH latest AS (
          SELECT served_by = $id AND NOT (partial AND starts_with(coalesce(error, ''), 'candidate')) AS whole, fallback
          FROM exchanges WHERE task = $task AND ts >= $since AND (
            (served_by = $id AND NOT (partial AND starts_with(coalesce(error, ''), $gone)))
            OR (served_by = 'teacher' AND fallback NOT IN ($unsure, $too_long) AND NOT starts_with(fallback, $gone))
          ) ORDER BY id DESC LIMIT $latest
        )
        SELECT count(*) FILTER (whole), count(*) FILTER (NOT whole),
               count(*) FILTER (fallback = $malformed) FROM latest
        """,
        {
            "id": candidate.id, "task": candidate.task, "since": candidate.since, "unsure": UNSURE,
            "too_long": TOO_LONG, "gone": UNREACHABLE, "malformed": MALFORMED, "latest": max(GUARDED, latest),
        },
    )  # fmt: skip
    return Tried(answered, failures, malformed)


def _latencies(log: Log, candidate: Candidate) -> tuple[list[float], list[float]]:
    """Milliseconds of whole answers: the candidate's since its step began, the teacher's from a week before on."""
    whole = "task = ? AND path = '/v1/chat/completions' AND status = 200 AND NOT partial AND latency_ms IS NOT NULL"
    mine = log.query(
        f"SELECT latency_ms FROM exchanges WHERE {whole} AND served_by = ? AND ts >= ? ORDER BY id DESC LIMIT ?",
        [candidate.task, candidate.id, candidate.since, GUARDED],
    )
    if not mine:
        return [], []
    usual = log.query(
        f"SELECT latency_ms FROM exchanges WHERE {whole} AND served_by = 'teacher' AND fallback IS NULL "
        "AND ts >= CAST(? AS TIMESTAMPTZ) - INTERVAL 7 DAY ORDER BY id DESC LIMIT ?",
        [candidate.task, candidate.since, TEACHERS],
    )
    return [row[0] for row in mine], [row[0] for row in usual]


def _lengths(log: Log, candidate: Candidate) -> tuple[list[float], list[float]]:
    """Characters of answers: served since the step began, and those that were certified."""
    now = log.query(
        "SELECT length(answer) FROM exchanges WHERE task = ? AND served_by = ? AND ts >= ? AND NOT partial "
        "AND answer IS NOT NULL ORDER BY id DESC LIMIT ?",
        [candidate.task, candidate.id, candidate.since, GUARDED],
    )
    if not now:
        return [], []
    then = log.query(
        "SELECT length(answer) FROM verdicts WHERE candidate = ? AND kind = 'shadow' AND covered "
        "AND answer IS NOT NULL",
        [candidate.id],
    )
    return [row[0] for row in now], [row[0] for row in then]
