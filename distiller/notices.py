"""Owns what people are told of: moments, which happen once, and states, which are told when they begin.

Must not know how it is told, nor what was told before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from distiller.notice import Notice
from distiller.settings import Settings
from proxy.accounts import read_standing
from proxy.errors import Unavailable
from proxy.keys import read_keys
from proxy.log import Log
from router.learning import Learning
from router.lifecycle import FELL, REFUTED
from router.registry import CANARY, LIVE, RETIRED, SHADOW, SUPERSEDED
from router.sunset import in_words, sunsets

LATEST = timedelta(days=1)
"""What happened before is no news, such as when notices are first asked for."""
RECENT = timedelta(hours=1)
_BY_HAND = "rolled back: "
_STAGES = """
SELECT id, ts, task, candidate, stage_from, stage_to, reason FROM transitions
WHERE ts >= ? AND stage_from <> stage_to ORDER BY id
"""
# Of what failed, the last try: the others are tried again.
_FAILED = """
SELECT r.id, r.ended, r.job, r.attempt, r.outcome FROM runs r
WHERE r.ended >= ? AND r.outcome IN ('failed', 'interrupted') AND NOT EXISTS (
  SELECT 1 FROM run_events e WHERE e.state = 'queued' AND e.job = r.job AND e.cause = r.cause AND e.run > r.id)
ORDER BY r.id
"""
_CERTIFICATES = "SELECT outcome FROM runs WHERE kind = 'certificates' AND outcome IN ('ok', 'refused') ORDER BY id DESC"
_UNPRICED = "SELECT count(*) FROM spend WHERE ts >= ? AND TRY_CAST(usd AS DECIMAL(38, 15)) IS NULL"


@dataclass(frozen=True, slots=True)
class Outside:
    """What the log does not know: how engines and students that should answer are, and what workers dropped."""

    engine: str | None = None
    dropped: float = 0.0
    students_down: int = 0


def moments(log: Log, now: datetime) -> Iterator[Notice]:
    """What has happened within a day, the oldest first."""
    for name, ts, task, candidate, before, after, reason in log.query(_STAGES, [now - LATEST]):
        facts = {"task": task, "candidate": candidate, "stage": after}
        if after == RETIRED and before in (CANARY, LIVE) and not reason.startswith(SUPERSEDED):
            lost = reason.startswith((FELL, REFUTED))
            why = "" if reason.startswith(_BY_HAND) else f": {reason}"  # Of a person's own words nothing is known.
            text = f"The teacher answers {task} again: {candidate} was taken back{why}"
            yield Notice("parity_lost" if lost else "rollback", name, text, ts, facts)
        elif after == LIVE or (after == CANARY and before == SHADOW):
            yield Notice("promotion", name, f"{candidate} of {task} is now {after}", ts, facts)
    for name, ts, job, attempt, outcome in log.query(_FAILED, [now - LATEST]):
        text = f"{job} {outcome}, for good after attempt {attempt}: `stillroom schedule list` says why"
        yield Notice("run_failed", name, text, ts, {"job": job, "attempt": attempt, "outcome": outcome})


def states(log: Log, settings: Settings, outside: Outside, now: datetime) -> Iterator[Notice]:
    """What is so now."""
    yield from _budgets(settings, now)
    yield from _learning_budgets(log, settings, now)
    ((unpriced,),) = log.query(_UNPRICED, [now - LATEST])
    if unpriced:
        text = f"{unpriced} charges of the last day have no price: set [money.prices] for the models in use"
        yield Notice("unpriced", "unpriced", text, now, {"charges": unpriced})
    if outside.dropped:
        text = f"{outside.dropped:.0f} exchanges were not recorded: see stillroom_dropped_total at /metrics for why"
        yield Notice("dropped", "dropped", text, now, {"exchanges": int(outside.dropped)})
    for one in sunsets(log, settings.teacher.sunsets, now):
        if one.come or one.since - now <= timedelta(days=settings.notify.sunset_days):
            key = f"{one.model} {'ended' if one.come else 'ends'}"
            yield Notice("sunset", key, in_words(one, now), now, {"model": one.model, "successor": one.successor})
    if outside.engine == "down":
        yield Notice("student_down", "engine", "An engine that serves students is down: the teacher answers", now)
    elif outside.students_down:
        text = f"{outside.students_down} students that should answer are not served: the teacher answers"
        yield Notice("student_down", "students", text, now, {"students": outside.students_down})
    last = log.query(f"{_CERTIFICATES} LIMIT 1")
    if last and last[0][0] == "refused":
        text = "A certificate in use cannot be renewed: `stillroom schedule list` says which and why"
        yield Notice("certificate", "certificates", text, now)


def _budgets(settings: Settings, now: datetime) -> Iterator[Notice]:
    """Of this month's budgets of keys, those that are used up, or four fifths of them."""
    for key in read_keys(settings.keys):
        budget = key.limits.budget_usd
        if not budget or key.revoked:
            continue
        try:
            used = read_standing(settings.limits, key.name, now.timestamp()).spent / budget
        except Unavailable:  # A damaged account is told where it is used.
            continue
        facts = {"key": key.name, "used": round(used, 3), "budget_usd": budget}
        yield from _used(f"Key {key.name} has used {used:.0%} of its budget of this month", key.name, used, now, facts)


def _learning_budgets(log: Log, settings: Settings, now: datetime) -> Iterator[Notice]:
    """The same of tasks' budgets for learning."""
    budgets = Learning(log, settings.router, settings.learning_lock, lambda: now)
    for task in settings.router.tasks:
        if account := budgets.account(task):
            facts = {"task": task, "used": round(account.used, 3), "learning_budget": float(account.budget)}
            text = f"{account.used:.0%} of the learning budget of {task} is used this month"
            yield from _used(text, f"learning {task}", account.used, now, facts)


def _used(text: str, name: str, used: float, now: datetime, facts: Mapping[str, Any]) -> Iterator[Notice]:
    for share in (80, 100):
        if used >= share / 100:
            yield Notice(f"budget_{share}", f"{name} {now:%Y-%m}", text, now, facts)


class Drops:
    """Exchanges that workers do not record, as they count them."""

    def __init__(self, metrics: Path) -> None:
        """`metrics` is the workers' PROMETHEUS_MULTIPROC_DIR."""
        self._metrics, self._last, self._rose = metrics, 0.0, datetime.fromtimestamp(0, UTC)

    def now(self, now: datetime) -> float:
        """How many since the workers started, while the last of them is no older than an hour; then 0."""
        total = dropped(self._metrics)
        if total > self._last:
            self._rose = now
        self._last = total
        return total if now - self._rose < RECENT else 0.0


def dropped(metrics: Path) -> float:
    """What workers have dropped since they started, for any reason."""
    if not metrics.is_dir():
        return 0.0
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(metrics))  # type: ignore[no-untyped-call]
    samples = (sample for metric in registry.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name == "stillroom_dropped_total")


def by_key(found: Iterator[Notice], events: tuple[str, ...]) -> Mapping[tuple[str, str], Notice]:
    """Those of the events that are wanted (none named: all), by event and key."""
    return {(one.event, one.key): one for one in found if not events or one.event in events}
