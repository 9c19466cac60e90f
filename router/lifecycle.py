"""Owns the stages: shadow -> canary -> live -> retired, what moves a candidate on, and the policy that follows.

Nothing is promoted without a certificate; the statistic that promoted also demotes. Must not talk to models.
"""

import fcntl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.stats import binom

from proxy.errors import Refused
from proxy.log import Log
from router.candidates import UNREACHABLE, UNSURE
from router.evidence import Evidence, audit, certificate, evidence, in_words
from router.parity import Parity
from router.policy import Policy, Route, save_policy
from router.registry import (
    CANARY,
    LIVE,
    RETIRED,
    SHADOW,
    Candidate,
    candidates,
    certificate_of,
    move,
    newest,
)  # fmt: skip
from router.settings import RouterSettings

# Tries the guardrail looks back on: enough to see a rate, few enough that a student which breaks late is seen soon.
GUARDED = 200
# Chance that one such window retires a candidate that fails at max_failures exactly; every exchange is a new look.
GUARD_ALPHA = 1e-6


@dataclass(frozen=True, slots=True)
class Tried:
    """Latest exchanges of a stage that the candidate answered, and those it failed at (being unsure is none)."""

    answered: int
    failed: int

    @property
    def all(self) -> int:
        """Both."""
        return self.answered + self.failed


def next_stage(
    stage: str, shadowed: Parity, audited: Parity, tried: Tried, settings: RouterSettings
) -> tuple[str, str] | None:
    """The stage this evidence calls for and the reason, or None to stay."""
    if stage == SHADOW:
        if shadowed.proven:
            return CANARY, f"parity proved on {shadowed.n} exchanges: lower bound {shadowed.lower:.4f}"
        return (RETIRED, f"parity refuted: upper bound {shadowed.upper:.4f}") if shadowed.refuted else None
    if audited.refuted:
        return RETIRED, f"audit refuted parity on {audited.n} exchanges: upper bound {audited.upper:.4f}"
    over = stage == CANARY and tried.all >= settings.canary_exchanges
    if failing(tried, settings.max_failures) or (over and tried.failed > settings.max_failures * tried.all):
        return RETIRED, f"{tried.failed} of the latest {tried.all} {stage} exchanges failed"
    return (LIVE, f"{tried.answered} of {tried.all} canary exchanges answered") if over else None


def failing(tried: Tried, most: float) -> bool:
    """The guardrail: more failures than a share of `most` explains (binomial tail below GUARD_ALPHA).

    Five tries that all fail are enough at `most` = 0.05, so that clients do not wait for a candidate that times out.
    """
    return bool(binom.sf(tried.failed - 1, tried.all, most) < GUARD_ALPHA)


def advance(log: Log, candidate: Candidate, settings: RouterSettings) -> str | None:
    """Move one candidate on where its evidence says so; returns the reason when it moved."""
    if candidate.stage == RETIRED:
        return None
    found = evidence(log, candidate)
    step = next_stage(candidate.stage, found.parity, audit(log, candidate), _tried(log, candidate, settings), settings)
    if step is None:
        return None
    stage, reason = step
    proof = certificate(log, candidate, found) if stage == CANARY else None
    if not move(log, candidate, stage, reason, proof):
        return None
    if stage == CANARY:
        _supersede(log, candidate)
    return reason


def promote(log: Log, task: str) -> tuple[Candidate, str]:
    """Take the task's newest candidate one stage on; Refused where there is no certificate for it."""
    candidate = newest(log, task)
    found = evidence(log, candidate)
    if candidate.stage == LIVE:
        return candidate, "already live"
    proof = certificate_of(log, candidate.id) or (certificate(log, candidate, found) if found.parity.proven else None)
    if proof is None:
        raise Refused(f"no promotion without a certificate: {in_words(candidate, found)}")
    if audit(log, candidate).refuted:
        raise Refused(f"audits refuted {candidate.id} after its promotion: distill another one")
    stage = LIVE if candidate.stage == CANARY else CANARY
    if not move(log, candidate, stage, "promoted by the operator", proof):
        raise Refused(f"{candidate.id} changed its stage just now: look at `stillroom status` and try again")
    _supersede(log, candidate)
    return candidate, stage


def rollback(log: Log, task: str, reason: str) -> list[Candidate]:
    """Retire whatever answers the task now; returns the candidates that were moved."""
    newest(log, task)  # Says clearly when the task has no candidate at all.
    serving = [candidate for candidate in candidates(log, task) if candidate.stage in (CANARY, LIVE)]
    return [candidate for candidate in serving if move(log, candidate, RETIRED, f"rolled back: {reason}")]


def publish(log: Log, settings: RouterSettings, served: Mapping[str, str], path: Path) -> Policy:
    """Write the policy: canary and live candidates whose engine is ready; `served` maps candidate to its URL.

    Reading the stages and writing the file are one step under a lock, so that a slower publisher cannot put back what
    a rollback has just taken away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        routes = {
            candidate.task: route(candidate, settings, served[candidate.id])
            for candidate in candidates(log)
            if candidate.stage in (CANARY, LIVE) and candidate.id in served
        }
        policy = Policy(routes)
        save_policy(policy, path)
    return policy


def route(candidate: Candidate, settings: RouterSettings, url: str) -> Route:
    """How the candidate is asked, in shadow as in live traffic."""
    return Route(
        candidate=candidate.id,
        url=url,
        stage=candidate.stage,
        share=settings.canary_share if candidate.stage == CANARY else 1.0,
        evaluator=candidate.evaluator,
        threshold=candidate.threshold,
        labels=tuple(candidate.card["labels"]),
        static=tuple(candidate.card["static"]),
        max_tokens=int(candidate.card["max_tokens"]),
        timeout=settings.candidate_timeout,
        at_once=settings.candidate_concurrency,
        calibration=tuple((sure, probability) for sure, probability in candidate.card.get("calibration", ())),
    )


def standing(log: Log, candidate: Candidate, settings: RouterSettings) -> dict[str, object]:
    """One candidate as `stillroom status` shows it."""
    found: Evidence = evidence(log, candidate)
    return {
        "task": candidate.task,
        "candidate": candidate.id,
        "stage": candidate.stage,
        "since": candidate.since.isoformat(timespec="seconds"),
        "reason": candidate.reason,
        "verdict": in_words(candidate, found),
        "evidence": asdict(found),
        "tried": asdict(_tried(log, candidate, settings)),
    }


def _tried(log: Log, candidate: Candidate, settings: RouterSettings) -> Tried:
    """A failure shows in the log as a teacher's answer with a fallback; only this task's, since its stage began.

    An engine that is gone is no failure of the candidate: its route goes with it, and comes back with it.
    """
    ((answered, failed),) = log.query(
        """
        WITH latest AS (
          SELECT served_by FROM exchanges WHERE task = $task AND ts >= $since AND (
            served_by = $id OR (served_by = 'teacher' AND fallback <> $unsure AND NOT starts_with(fallback, $gone))
          ) ORDER BY id DESC LIMIT $latest
        )
        SELECT count(*) FILTER (served_by = $id), count(*) FILTER (served_by <> $id) FROM latest
        """,
        {
            "id": candidate.id, "task": candidate.task, "since": candidate.since, "unsure": UNSURE,
            "gone": UNREACHABLE, "latest": max(GUARDED, settings.canary_exchanges),
        },
    )  # fmt: skip
    return Tried(answered, failed)


def _supersede(log: Log, candidate: Candidate) -> None:
    for older in candidates(log, candidate.task):
        if older.id != candidate.id and older.stage in (CANARY, LIVE):
            move(log, older, RETIRED, f"superseded by {candidate.id}")
