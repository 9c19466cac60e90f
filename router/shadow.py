"""Owns shadow and audit: asking one model what the other already answered, and recording verdicts.

A reader of the log, never a tap on the request. A candidate that fails is a verdict too: uncovered, because live it
would fall back. Must not draw conclusions.
"""

import asyncio
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from proxy.deciding import CandidateFailed
from proxy.derive import CHAT, Derived, derive
from proxy.errors import BadInput
from proxy.log import Log
from proxy.relay import Upstream
from proxy.sunset import GONE, SUCCESSOR
from proxy.teachers import Teachers
from router.candidates import UNAVAILABLE, Reply, ask, check, teacher_only
from router.ceiling import Ceiling, Yardstick, drawn, measured, teacher_answer
from router.evaluators import JUDGE
from router.judge import Judge
from router.policy import HELD_BACK, Route
from router.registry import SHADOW, Candidate
from router.said import Said, from_log
from router.sampling import ALL, chosen, share_of
from router.scoring import Score, scoring
from router.verdicts import Costs, Verdict, record

_log = logging.getLogger("stillroom.shadow")

# Only whole, plain answers of the teacher given after the student's data was frozen can be compared with. A successor's
# are no measure of who learned from the model before it, and never saw one.
_UNSHADOWED = f"""
FROM exchanges e
WHERE path = '/v1/chat/completions' AND task = $task AND ts > CAST($until AS TIMESTAMPTZ) AND served_by = 'teacher'
  AND status = 200 AND NOT partial
  AND finish_reason = 'stop' AND answer IS NOT NULL AND tool_calls IS NULL AND request_encoding = 'utf-8'
  AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.candidate = $candidate AND v.exchange = e.id)
  AND (reason IS NULL OR NOT starts_with(reason, '{SUCCESSOR}') OR EXISTS (
    SELECT 1 FROM exchanges s
    WHERE s.task = $task AND s.ts <= CAST($until AS TIMESTAMPTZ) AND starts_with(s.reason, '{SUCCESSOR}')))
"""
# After promotion only who was held back, by a hash before anything was known, is a fair sample of the task.
_HELD_BACK = f"AND ends_with(reason, ': {HELD_BACK}')"
# Of an answer that flowed and broke off, half is no measure of the whole.
_UNAUDITED = """
FROM exchanges e
WHERE path = '/v1/chat/completions' AND served_by = ? AND task IS NOT NULL AND request_encoding = 'utf-8'
  AND NOT partial AND (answer IS NOT NULL OR tool_calls IS NOT NULL) AND hash(id) / 18446744073709551615 < ?
  AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.exchange = e.id)
  AND CASE WHEN teacher IS NULL THEN NOT list_contains(CAST(? AS VARCHAR[]), coalesce(model, ''))
      ELSE list_contains(CAST(? AS VARCHAR[]), teacher) END
"""
# The few are found by their ids first: the texts of all that wait would be read to sort them.
_FEW = "FROM exchanges WHERE id IN (SELECT id {which} ORDER BY id LIMIT {limit:d}) ORDER BY id"
# What a teacher will say again: recorded as not comparable, or such requests would stand before all others for ever.
_FINAL = (400, 413, 422, GONE)


async def shadow(
    log: Log,
    session: aiohttp.ClientSession,
    candidate: Candidate,
    route: Route,
    limit: int,
    concurrency: int,
    ceiling: Ceiling | None = None,
    judge: Judge | None = None,
) -> int:
    """Compare up to `limit` exchanges nobody compared yet; returns how many.

    Once the candidate is promoted these are the held back ones, and the verdicts' kind is "holdback". With a `ceiling`,
    the teacher is asked again on its share of them, where the candidate's answer is covered. None are compared where a
    judge has to score and there is none now; what it could not be asked about is left for later, and so is what a
    hosted candidate's provider had no answer to (`UNAVAILABLE`). BadInput when the operator's evaluator fails on one of
    them: then none is recorded, since leaving out what it fails on would flatter the candidate.
    """
    score = scoring(candidate, judge)
    if score is None:
        return 0
    kind, which = ("shadow", "") if candidate.stage == SHADOW else ("holdback", _HELD_BACK)
    few = _FEW.format(which=f"{_UNSHADOWED} {which}", limit=limit)
    rows = log.query(f"SELECT id, request, answer, teacher {few}", _places(candidate))
    again = drawn(log, [row[0] for row in rows], ceiling.share) if ceiling else set()
    known = measured(log, list(again), candidate)
    patient = replace(route, timeout=max(route.timeout, 120.0))  # Nobody waits for a shadow; a queue is no failure.
    gate, costs = asyncio.Semaphore(concurrency), Costs()
    shadowing = _Shadowing(session, candidate, patient, kind, score, costs, gate, ceiling, again, known)
    outcomes = await asyncio.gather(*(shadowing.verdict(*row) for row in rows), return_exceptions=True)
    return kept(log, candidate, _fairly_drawn(outcomes, costs), costs, judge)


def _fairly_drawn(outcomes: Sequence[object], costs: Costs) -> list[object]:
    """Without those who were passed over, where the judge was asked and was not there.

    They count as agreements: they must not come in while those who were drawn beside them wait.
    """
    told = {bill.exchange for bill in costs.judge if bill.questions}
    there = any(isinstance(one, Verdict) and one.exchange in told for one in outcomes)
    if there or None not in outcomes:
        return list(outcomes)
    return [one for one in outcomes if not (isinstance(one, Verdict) and one.verdict is None)]


@dataclass(frozen=True, slots=True)
class _Shadowing:
    """Comparisons of one candidate that run side by side, as far as the `gate` lets them."""

    session: aiohttp.ClientSession
    candidate: Candidate
    route: Route
    kind: str
    score: Score
    costs: Costs
    gate: asyncio.Semaphore
    ceiling: Ceiling | None
    again: Collection[str]
    """Exchanges that are drawn for a yardstick; `known` are those that were measured before."""
    known: Mapping[str, Yardstick]

    async def verdict(self, exchange: str, request: str, answer: str, asked_of: str | None) -> Verdict | None:
        """Of one exchange, whose answer is of the teacher `asked_of`; None where it has to be compared later."""
        body, teacher = json.loads(request), Said(answer)
        if reason := teacher_only(body):
            return Verdict(exchange, self.kind, 0.0, None, False, None, 0.0, reason)
        async with self.gate:
            empty = Verdict(exchange, self.kind, 0.0, None, False, None, 0.0, None)
            asked = await answered(self.session, self.route, empty, body, self.costs)
        if unavailable(asked):
            return None
        if not worth_scoring(self.candidate, asked):
            return asked
        share = self._share(asked)
        if share < ALL:
            asked = replace(asked, share=share)
            if not chosen(exchange, share):
                return replace(asked, verdict=None)
        verdict = await scored(self.score, asked, body, teacher, self.costs)
        if verdict is None or not (self.ceiling and verdict.covered and exchange in self.again):
            return verdict
        again = self.ceiling.of(asked_of, body.get("model"))
        measure = await self._yardstick(again, exchange, request, body, teacher)
        return replace(verdict, yardstick=measure.agreement, yardstick_answer=measure.answer) if measure else verdict

    def _share(self, asked: Verdict) -> float:
        """With which it is judged: what has a yardstick for certain, and all that is watched after promotion."""
        certain = self.kind != "shadow" or asked.exchange in self.again
        return ALL if certain else share_of(self.candidate, asked.confidence)

    async def _yardstick(
        self, again: Upstream | None, exchange: str, request: str, body: Mapping[str, Any], teacher: Said
    ) -> Yardstick | None:
        if exchange in self.known:
            return self.known[exchange]
        if again is None:
            return None
        async with self.gate:
            return await _again(again, self.score, exchange, request, body, teacher, self.costs)


def kept(log: Log, candidate: Candidate, outcomes: Sequence[object], costs: Costs, judge: Judge | None) -> int:
    """Record the verdicts among what came out, with all costs; where one failed, only the costs, and raise it."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    verdicts = [] if failed else [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    compared = record(log, candidate, verdicts, costs, judge.name if judge else None)
    if failed:
        raise failed[0]
    return compared


def waiting(log: Log, candidate: Candidate) -> int:
    """How many exchanges of the task could still be compared."""
    return int(log.query(f"SELECT count(*) {_UNSHADOWED}", _places(candidate))[0][0])


def _places(candidate: Candidate) -> dict[str, str]:
    return {"task": candidate.task, "until": candidate.card["data_until"], "candidate": candidate.id}


async def audit(
    log: Log,
    teachers: Teachers,
    candidate: Candidate,
    share: float,
    limit: int,
    judge: Judge | None = None,
    ended: Collection[str] = (),
) -> int:
    """Ask each exchange's teacher what the candidate already answered, on a share chosen by the exchanges' ids.

    None for the usual teacher's models that have `ended`: `router.golden` looks after those. Nor of a teacher that is
    not declared any more.

    Where the operator's evaluator fails, or the judge is not there just then, the teacher was paid in vain: recorded as
    no verdict, with the error; of a judge's the rest is left for later.
    """
    score, costs = scoring(candidate, judge), Costs()
    if score is None:
        return 0
    verdicts: list[Verdict] = []
    due = f"SELECT id, request, answer, tool_calls, teacher {_FEW.format(which=_UNAUDITED, limit=limit)}"
    among = [candidate.id, share, list(ended), list(teachers.named)]
    for exchange, request, answer, calls, name in log.query(due, among):
        teacher = teachers.of(name)
        assert teacher is not None  # The query asks for those there are.
        started = time.perf_counter()
        status, wanted = await teacher_answer(teacher, request)
        elapsed = (time.perf_counter() - started) * 1000
        if wanted.finish_reason:
            costs.teacher.append((exchange, "audit", wanted))
            asked = Verdict(exchange, "audit", 0.0, None, True, wanted.answer, elapsed, None)
            verdicts.append(await _audited(score, asked, request, wanted, from_log(answer, calls), costs))
        elif status in _FINAL:
            error = f"the teacher answered {status}"
            verdicts.append(Verdict(exchange, "audit", 0.0, None, False, None, elapsed, error))
        if judge is not None and judge.resting:
            break
    return record(log, candidate, verdicts, costs, judge.name if judge else None)


async def _audited(score: Score, asked: Verdict, request: str, wanted: Derived, given: Said, costs: Costs) -> Verdict:
    teacher = from_log(wanted.answer, wanted.tool_calls)
    try:
        said = await score(asked.exchange, json.loads(request), teacher, given)
    except BadInput as failed:
        _log.error("an audit of %s judged nothing: %s", asked.exchange, failed)
        return replace(asked, covered=False, error=str(failed))
    costs.judge.append(said.bill)
    return replace(asked, verdict=said.verdict, covered=not said.unavailable, error=said.error)


def unavailable(asked: Verdict) -> bool:
    """Whether there was nobody to ask just now: then it is asked again later."""
    return asked.error is not None and asked.error.startswith(UNAVAILABLE)


async def answered(
    session: aiohttp.ClientSession, route: Route, asked: Verdict, body: Mapping[str, Any], costs: Costs
) -> Verdict:
    """What the candidate answers, not scored yet."""
    started = time.perf_counter()
    text, sure, error, covered = None, None, None, False
    try:
        reply = await ask(session, route, body)
        text, sure = reply.text, reply.confidence
        if route.model:
            costs.hosted.append((asked.exchange, _bought(reply)))
        check(route, reply)
        covered = True
    except CandidateFailed as failed:
        error = str(failed) if failed.confidence is None else None
    elapsed = (time.perf_counter() - started) * 1000
    return replace(asked, confidence=sure, covered=covered, answer=text, latency_ms=elapsed, error=error)


def _bought(reply: Reply) -> Derived:
    """An answer's tokens, read as the teacher's are."""
    text = json.dumps({"choices": [{"message": {}, "finish_reason": None}], "usage": reply.usage})
    return derive(CHAT, None, "{}", 200, False, text)


def worth_scoring(candidate: Candidate, asked: Verdict) -> bool:
    """Whether a score would say anything that is worth its price.

    Below the threshold the teacher answers, so that no test counts the verdict: a judge is not paid for it. Among those
    that do count, `router.sampling` draws those that tell most.
    """
    return asked.covered or candidate.evaluator != JUDGE


async def scored(score: Score, asked: Verdict, body: Mapping[str, Any], teacher: Said, costs: Costs) -> Verdict | None:
    """With the verdict; None where it has to be made again later."""
    if asked.answer is None:
        return asked
    said = await score(asked.exchange, body, teacher, Said(asked.answer))
    costs.judge.append(said.bill)
    return None if said.unavailable else replace(asked, verdict=said.verdict, error=asked.error or said.error)


async def _again(
    teacher: Upstream,
    score: Score,
    exchange: str,
    request: str,
    body: Mapping[str, Any],
    recorded: Said,
    costs: Costs,
) -> Yardstick | None:
    """Ask the teacher the same again, and score it as a candidate's answer would be; None where there is no measure.

    A refusal is an answer: one that disagrees.
    """
    _, again = await teacher_answer(teacher, request)
    if not again.finish_reason:
        return None
    costs.teacher.append((exchange, "ceiling", again))
    said = await score(exchange, body, recorded, from_log(again.answer, again.tool_calls))
    costs.judge.append(said.bill)
    return None if said.unavailable else Yardstick(said.verdict, again.answer)
