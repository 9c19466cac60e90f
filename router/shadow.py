"""Owns shadow and audit: asking one model what the other already answered, and recording verdicts.

A reader of the log, never a tap on the request. A candidate that fails is a verdict too: uncovered, because live it
would fall back. Must not draw conclusions.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import duckdb

from proxy.deciding import CandidateFailed
from proxy.derive import Derived
from proxy.ids import ulid
from proxy.log import Log
from proxy.relay import Upstream
from router.candidates import ask, check, teacher_only
from router.ceiling import Ceiling, drawn, measured, teacher_answer, yardstick
from router.evaluators import EVALUATORS
from router.policy import HELD_BACK, Route
from router.registry import SHADOW, Candidate

# Only whole, plain answers of the teacher given after the student's data was frozen can be compared with.
_UNSHADOWED = """
FROM exchanges e
WHERE path = '/v1/chat/completions' AND task = ? AND ts > CAST(? AS TIMESTAMPTZ) AND served_by = 'teacher'
  AND status = 200 AND NOT partial
  AND finish_reason = 'stop' AND answer IS NOT NULL AND tool_calls IS NULL AND request_encoding = 'utf-8'
  AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.candidate = ? AND v.exchange = e.id)
"""
# After promotion only who was held back, by a hash before anything was known, is a fair sample of the task.
_HELD_BACK = f"AND ends_with(reason, ': {HELD_BACK}')"
_UNAUDITED = """
SELECT id, request, answer FROM exchanges e
WHERE path = '/v1/chat/completions' AND served_by = ? AND task IS NOT NULL AND request_encoding = 'utf-8'
  AND answer IS NOT NULL AND hash(id) / 18446744073709551615 < ?
  AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.exchange = e.id)
ORDER BY id LIMIT ?
"""
# What a teacher will say again: recorded as not comparable, or such requests would stand before all others for ever.
_FINAL = (400, 413, 422)
_COLUMNS = (
    "id, ts, task, candidate, exchange, kind, verdict, confidence, covered, answer, latency_ms, error, yardstick, "
    "yardstick_answer"
)
# The price function is the one that ingest registers with the log's connection.
_CHARGE = """
INSERT INTO spend BY NAME
SELECT ? AS id, now() AS ts, ? AS task, ? AS kind, ? AS model, ? AS exchange, 1.0 AS quantity, 'exchange' AS unit,
       price(?, CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT)) AS usd
"""

Bill = tuple[str, str, Derived]  # exchange, kind of charge, what was answered


@dataclass(frozen=True, slots=True)
class Verdict:
    """One scored comparison, as the table keeps it."""

    exchange: str
    kind: str
    verdict: float
    confidence: float | None
    covered: bool
    answer: str | None
    latency_ms: float
    error: str | None
    yardstick: float | None = None
    """How the teacher agrees with itself on the same exchange, in [0, 1]."""
    yardstick_answer: str | None = None


async def shadow(
    log: Log,
    session: aiohttp.ClientSession,
    candidate: Candidate,
    route: Route,
    limit: int,
    concurrency: int,
    ceiling: Ceiling | None = None,
) -> int:
    """Compare up to `limit` exchanges nobody compared yet; returns how many.

    Once the candidate is promoted these are the held back ones, and the verdicts' kind is "holdback". With a `ceiling`,
    the teacher is asked again on its share of them, where the candidate's answer is covered.
    """
    kind, which = ("shadow", "") if candidate.stage == SHADOW else ("holdback", _HELD_BACK)
    found = f"SELECT id, request, answer {_UNSHADOWED} {which} ORDER BY id LIMIT {limit:d}"
    rows = log.query(found, [candidate.task, candidate.card["data_until"], candidate.id])
    again = drawn(log, [row[0] for row in rows], ceiling.share) if ceiling else set()
    known = measured(log, list(again), candidate.evaluator)
    gate = asyncio.Semaphore(concurrency)
    patient = replace(route, timeout=max(route.timeout, 120.0))  # Nobody waits for a shadow; a queue is no failure.
    bills: list[Bill] = []

    async def one(exchange: str, request: str, teacher: str) -> Verdict:
        body = json.loads(request)
        if reason := teacher_only(body):
            return Verdict(exchange, kind, 0.0, None, False, None, 0.0, reason)
        async with gate:
            verdict = replace(await _compare(session, patient, exchange, body, teacher), kind=kind)
            if not (ceiling and verdict.covered and exchange in again):
                return verdict
            found = known.get(exchange) or await yardstick(ceiling.teacher, request, teacher, candidate.evaluator)
        if found and found.paid:
            bills.append((exchange, "ceiling", found.paid))
        return replace(verdict, yardstick=found.agreement, yardstick_answer=found.answer) if found else verdict

    return _record(log, candidate, await asyncio.gather(*(one(*row) for row in rows)), bills)


def waiting(log: Log, candidate: Candidate) -> int:
    """How many exchanges of the task could still be compared."""
    parameters = [candidate.task, candidate.card["data_until"], candidate.id]
    return int(log.query(f"SELECT count(*) {_UNSHADOWED}", parameters)[0][0])


async def audit(log: Log, teacher: Upstream, candidate: Candidate, share: float, limit: int) -> int:
    """Ask the teacher what the candidate already answered, on a share of exchanges chosen by their id."""
    verdicts, bills = [], []
    for exchange, request, answer in log.query(_UNAUDITED, [candidate.id, share, limit]):
        started = time.perf_counter()
        status, wanted = await teacher_answer(teacher, request)
        elapsed = (time.perf_counter() - started) * 1000
        if wanted.finish_reason:
            score = EVALUATORS[candidate.evaluator](wanted.answer or "", answer)
            verdicts.append(Verdict(exchange, "audit", score, None, True, wanted.answer, elapsed, None))
            bills.append((exchange, "audit", wanted))
        elif status in _FINAL:
            error = f"the teacher answered {status}"
            verdicts.append(Verdict(exchange, "audit", 0.0, None, False, None, elapsed, error))
    return _record(log, candidate, verdicts, bills)


async def _compare(
    session: aiohttp.ClientSession, route: Route, exchange: str, body: Mapping[str, Any], teacher: str
) -> Verdict:
    started = time.perf_counter()
    text, sure, error = None, None, None
    covered, score = False, 0.0
    try:
        reply = await ask(session, route, body)
        text, sure = reply.text, reply.confidence
        score = EVALUATORS[route.evaluator](teacher, text)
        check(route, reply)
        covered = True
    except CandidateFailed as failed:
        error = str(failed) if failed.confidence is None else None
    elapsed = (time.perf_counter() - started) * 1000
    return Verdict(exchange, "shadow", score, sure, covered, text, elapsed, error)


def _record(log: Log, candidate: Candidate, verdicts: Sequence[Verdict], bills: Sequence[Bill] = ()) -> int:
    if not verdicts:
        return 0
    values = [
        value
        for v in verdicts
        for value in (
            ulid(), candidate.task, candidate.id, v.exchange, v.kind, v.verdict, v.confidence, v.covered, v.answer,
            v.latency_ms, v.error, v.yardstick, v.yardstick_answer,
        )
    ]  # fmt: skip
    places = ", ".join(["(?, now(), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * len(verdicts))

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"INSERT INTO verdicts ({_COLUMNS}) VALUES {places}", values)
        for exchange, kind, paid in bills:
            counts = [paid.prompt_tokens, paid.cached_tokens, paid.completion_tokens]
            connection.execute(_CHARGE, [ulid(), candidate.task, kind, paid.model, exchange, paid.model, *counts])

    log.transaction(work)
    return len(verdicts)
