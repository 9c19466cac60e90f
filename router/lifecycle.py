"""Owns the stages: shadow -> canary -> live -> retired, what moves a candidate on, and the policy that follows.

Nothing is promoted without a certificate; the statistic that promoted also demotes. Must not talk to models.
"""

import fcntl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proxy.errors import Refused
from proxy.log import Log
from router.bids import outbid
from router.certificate import Sign, certificate
from router.drift import Drift
from router.evidence import audited, evidence, in_words, pace
from router.freezes import frozen, held
from router.gold import told
from router.guardrails import Tried, failed, tried, troubled
from router.judging import missing
from router.parity import Parity
from router.policy import Policy, Route, save_policy
from router.registry import (
    CANARY,
    HOSTED,
    LIVE,
    RETIRED,
    SHADOW,
    SUPERSEDED,
    Candidate,
    candidates,
    certificate_of,
    move,
    newest,
)  # fmt: skip
from router.settings import RouterSettings
from router.slices import lagging


@dataclass(frozen=True, slots=True)
class Step:
    """Where evidence or an operator takes a candidate: stage, share of conversations, and why."""

    stage: str
    share: float
    reason: str


def fell(found: Drift) -> str | None:
    """The fall of the latest comparisons in words, if there is one."""
    if not found.found:
        return None
    return f"agreement fell to {found.recent:.3f} over the last {found.since} comparisons: below {found.bar:.3f}"


def from_shadow(shadowed: Parity, settings: RouterSettings) -> Step | None:
    """Where the shadow verdicts take a candidate, or None to stay."""
    if shadowed.refuted:
        return Step(RETIRED, 0.0, f"parity refuted: upper bound {shadowed.upper:.4f}")
    if shadowed.proven:
        reason = f"parity proved on {shadowed.n} exchanges: lower bound {shadowed.lower:.4f}"
        return following(SHADOW, 0.0, reason, settings)
    return None


def from_traffic(stage: str, share: float, later: Parity, done: Tried, settings: RouterSettings) -> Step | None:
    """Where its audits and its latest tries take a candidate that answers clients, or None to stay."""
    if later.refuted:
        return Step(RETIRED, 0.0, f"audit refuted parity on {later.n} exchanges: upper bound {later.upper:.4f}")
    if stage != CANARY or done.all < settings.canary_exchanges:
        return None
    if done.failed > settings.max_failures * done.all:
        return Step(RETIRED, 0.0, failed(done, stage))
    reason = f"{done.answered} of {done.all} canary exchanges answered at {percent(share)}"
    return following(stage, share, reason, settings)


def following(stage: str, share: float, reason: str, settings: RouterSettings) -> Step:
    """One step up: the next larger share of the canary, then live. Who answers nobody starts with the smallest."""
    shares = [one for one in settings.canary_shares if stage != CANARY or one > share]
    return Step(CANARY, shares[0], reason) if shares else Step(LIVE, 1.0, reason)


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:g} %"


def unsigned(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Signs nothing: nobody vouches for such a certificate, and `stillroom verify` says so."""
    return document


def advance(log: Log, candidate: Candidate, settings: RouterSettings, sign: Sign = unsigned) -> str | None:
    """Move one candidate on where its evidence says so; returns the reason when it moved."""
    step = _called_for(log, candidate, settings)
    if step is None:
        return None
    if step.stage == RETIRED:
        return step.reason if move(log, candidate, RETIRED, step.reason) else None
    floor = settings.slice_floor
    if held(log, candidate, settings) or outbid(log, candidate, floor) or lagging(log, candidate, floor):
        return None
    proof = sign(certificate(log, candidate, settings.slice_floor)) if candidate.stage == SHADOW else None
    if not move(log, candidate, step.stage, step.reason, proof, step.share):
        return None
    _supersede(log, candidate)
    return step.reason


def _called_for(log: Log, candidate: Candidate, settings: RouterSettings) -> Step | None:
    """What the evidence of its stage asks for; the proof is looked at no more once it has been given."""
    if candidate.stage == RETIRED:
        return None
    if candidate.stage == SHADOW:
        return from_shadow(evidence(log, candidate).parity, settings)
    later, done = audited(log, candidate), tried(log, candidate, settings.canary_exchanges)
    step = from_traffic(candidate.stage, candidate.share, later.parity, done, settings)
    if step is not None and step.stage == RETIRED:
        return step
    reason = fell(later.drift) or troubled(log, candidate, done, settings)
    return Step(RETIRED, 0.0, reason) if reason else step


def promote(log: Log, task: str, settings: RouterSettings, sign: Sign = unsigned, named: str = "") -> Candidate:
    """Take the task's newest candidate, or the `named` one, one step up and return it as it then is.

    Refused without a certificate, while a slice is far behind, while a cheaper one passes, after audits that refuted
    it, and where the task is frozen.
    """
    candidate = newest(log, task, named)
    found = evidence(log, candidate)
    if candidate.stage == LIVE:
        return candidate
    if ice := frozen(log).get(task):
        raise Refused(
            f"{task} is frozen ({ice.reason}): end that first with `stillroom freeze {task} --off --reason ...`"
        )
    if found.parity.proven and (late := lagging(log, candidate, settings.slice_floor)):
        raise Refused(late)
    proof: Mapping[str, Any] | None = certificate_of(log, candidate.id)
    if proof is None and found.parity.proven:
        proof = sign(certificate(log, candidate, settings.slice_floor))
    if proof is None:
        raise Refused(f"no promotion without a certificate: {in_words(candidate, found)}")
    if dearer := outbid(log, candidate, settings.slice_floor):
        raise Refused(f"{dearer}: `stillroom rollback {task}` first where that one should not answer")
    if audited(log, candidate).parity.refuted:
        raise Refused(f"audits refuted {candidate.id} after its promotion: distill another one")
    step = following(candidate.stage, candidate.share, "promoted by the operator", settings)
    if not move(log, candidate, step.stage, step.reason, proof, step.share):
        raise Refused(f"{candidate.id} changed its stage just now: look at `stillroom status` and try again")
    _supersede(log, candidate)
    return newest(log, task, candidate.id)


def rollback(log: Log, task: str, reason: str) -> list[Candidate]:
    """Retire whatever answers the task now; returns the candidates that were moved."""
    newest(log, task)  # Says clearly when the task has no candidate at all.
    serving = [candidate for candidate in candidates(log, task) if candidate.stage in (CANARY, LIVE)]
    return [candidate for candidate in serving if move(log, candidate, RETIRED, f"rolled back: {reason}")]


def publish(log: Log, settings: RouterSettings, served: Mapping[str, str], path: Path) -> Policy:
    """Write the policy: canary and live candidates that can be asked; `served` maps those of an engine to its URL.

    Reading the stages and writing the file are one step under a lock, so that a slower publisher cannot put back what
    a rollback has just taken away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        routes = {
            candidate.task: route(candidate, settings, url)
            for candidate in candidates(log)
            if candidate.stage in (CANARY, LIVE) and (url := url_of(candidate, served))
        }
        policy = Policy(routes)
        save_policy(policy, path)
    return policy


def url_of(candidate: Candidate, served: Mapping[str, str]) -> str | None:
    """Where the candidate can be asked now: a hosted one always at its own URL, a student where it is `served`."""
    return str(candidate.card["url"]) if candidate.kind == HOSTED else served.get(candidate.id)


def route(candidate: Candidate, settings: RouterSettings, url: str) -> Route:
    """How the candidate is asked, in shadow as in live traffic."""
    most = candidate.card["max_tokens"]
    return Route(
        candidate=candidate.id,
        url=url,
        stage=candidate.stage,
        share=candidate.share if candidate.stage == CANARY else 1.0,
        held_back=settings.holdback_share,
        evaluator=candidate.evaluator,
        threshold=candidate.threshold,
        labels=tuple(candidate.card["labels"]),
        static=tuple(candidate.card["static"]),
        extra_lines=candidate.card.get("extra_lines"),  # Students of before do not say.
        max_tokens=None if most is None else int(most),
        timeout=settings.candidate_timeout,
        at_once=settings.candidate_concurrency,
        calibration=tuple((sure, probability) for sure, probability in candidate.card.get("calibration", ())),
        model=candidate.card["model"] if candidate.kind == HOSTED else "",
        key_env=candidate.card.get("key_env", ""),
        first_tokens=int(candidate.card.get("first_tokens", 0)),  # Nor this; of a hosted model there is nothing to say.
        hold=settings.hold_seconds,
    )


def standing(log: Log, candidate: Candidate, settings: RouterSettings) -> dict[str, object]:
    """One candidate as `stillroom status` shows it."""
    found, done = evidence(log, candidate), tried(log, candidate, settings.canary_exchanges)
    proved_in_shadow = found.parity.proven and candidate.stage == SHADOW
    late = lagging(log, candidate, settings.slice_floor) if proved_in_shadow else None
    holds = held(log, candidate, settings)
    if proved_in_shadow and holds is None:
        holds = outbid(log, candidate, settings.slice_floor)
    return {
        "task": candidate.task,
        "candidate": candidate.id,
        "stage": candidate.stage,
        "since": candidate.since.isoformat(timespec="seconds"),
        "reason": candidate.reason,
        "verdict": late or in_words(candidate, found, pace(log, candidate)),
        "evidence": asdict(found),
        "missing": missing(log, candidate.id)[0],
        "tried": asdict(done),
        "share": candidate.share,
        "next": upcoming(candidate, found.parity, done, holds, settings),
        "feedback": asdict(told(log, candidate)),
    }


def upcoming(candidate: Candidate, shadowed: Parity, done: Tried, holds: str | None, settings: RouterSettings) -> str:
    """What the candidate waits for, in words; empty where nothing more comes."""
    if candidate.stage == RETIRED:
        return ""
    if candidate.stage == SHADOW and holds:
        return f"proved; {holds}" if shadowed.proven else f"after a proof: {holds}"
    if candidate.stage == CANARY:
        tries = f"{done.all} of {settings.canary_exchanges} tries at {percent(candidate.share)} of conversations"
        return f"{tries}; {holds or f'`stillroom promote {candidate.task}` goes on at once'}"
    return holds or ""


def _supersede(log: Log, candidate: Candidate) -> None:
    for older in candidates(log, candidate.task):
        if older.id != candidate.id and older.stage in (CANARY, LIVE):
            move(log, older, RETIRED, f"{SUPERSEDED}{candidate.id}")
