"""Owns what needs somebody, the most urgent first: each with what to do about it and where. Must not do it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from distiller.dashboard.capture import Capture
from distiller.runs import ENDED, FAILED, INTERRUPTED, Run, runs
from distiller.settings import Settings
from proxy.log import Log
from router.bids import passes
from router.figures import by_task, charges
from router.learning import Learning
from router.registry import CANARY, LIVE, RETIRED, SHADOW, SUPERSEDED, Candidate, candidates
from router.settings import TaskSettings
from router.sunset import in_words, sunsets

BAD, WARN, INFO = "bad", "warn", "info"
WORTH = 1000  # exchanges of a task in a month; with fewer, a student hardly pays
BUDGET = 0.8  # used up so far, a budget is told of
_LOST_DAYS, _MONTH_DAYS, _SUNSET_DAYS = 7, 30, 60
_RUNS = 200
_LOST = """
SELECT task, arg_max(candidate, id), arg_max(reason, id) FROM transitions
WHERE ts > $since AND stage_to = $retired AND stage_from IN ($canary, $live) AND NOT starts_with(reason, $superseded)
GROUP BY task ORDER BY max(id) DESC
"""
_VITALS: Mapping[str, tuple[str, str]] = {
    "log": ("The log does not answer.", "The messages of serve say why; what is recorded waits in the spool."),
    "round": ("The controller's rounds do not succeed.", "The messages of serve say why; the proxy goes on."),
    "spool": ("What is recorded does not reach the log.", "The messages of serve say why; nothing is lost meanwhile."),
    "disk": ("Less than 1 GB is free.", "Make room: below spool.min_free_mb nothing is recorded."),
    "engine": ("The engine that serves students is down.", "The teacher answers; the messages of serve say why."),
}


@dataclass(frozen=True, slots=True)
class Need:
    """One thing; `link` is a page about it, "" for none."""

    level: str
    what: str
    remedy: str = ""
    link: str = ""


def from_log(log: Log, settings: Settings, now: datetime) -> list[Need]:
    """What the log tells."""
    known = candidates(log)
    return [
        *_unpriced(log, now),
        *_lost(log, known, now),
        *_runs_that_failed(runs(log, _RUNS)),
        *_waiting(log, known, settings),
        *_sunsets(log, settings, now),
        *_learning(log, settings),
        *_worth_distilling(log, known, settings, now),
    ]


def from_process(report: Mapping[str, Any], counted: Capture | None) -> list[Need]:
    """What the process tells of itself: `report` is that of its vitals."""
    found = [Need(BAD, *_VITALS[name]) for name in report["degraded"]]
    if counted is not None and counted.dropped:
        why = ", ".join(counted.reasons)
        what = f"{counted.dropped:,} exchange{'' if counted.dropped == 1 else 's'} could not be kept ({why})."
        found.insert(
            0, Need(BAD, what, "Look at the disk and at the messages of serve. The clients had their answers.")
        )
    return found


def from_keys(used: Mapping[str, float | None]) -> list[Need]:
    """What the budgets of keys tell, by the share that is used."""
    return [
        Need(
            BAD if share >= 1 else WARN,
            f"The key {name} has used {share:.0%} of its budget of this month.",
            "Without room its requests are refused.",
            "/ui/settings#keys",
        )
        for name, share in used.items()
        if share is not None and share >= BUDGET
    ]


def ordered(*parts: Sequence[Need]) -> list[Need]:
    """All of them, the most urgent first."""
    return sorted((need for part in parts for need in part), key=lambda need: (BAD, WARN, INFO).index(need.level))


def _unpriced(log: Log, now: datetime) -> Iterator[Need]:
    models: dict[str, int] = {}
    for charge in charges(log, now - timedelta(days=1), now):
        if charge.unpriced:
            models[charge.model or "(no model)"] = models.get(charge.model or "(no model)", 0) + charge.unpriced
    if models:
        count, names = sum(models.values()), ", ".join(sorted(models)[:5])
        yield Need(
            WARN,
            f"{count:,} charge{' has' if count == 1 else 's have'} no price since yesterday: {names}.",
            "Set [money.prices]; what is unpriced is in no sum.",
            "/ui/ledger",
        )


def _lost(log: Log, known: Sequence[Candidate], now: datetime) -> Iterator[Need]:
    """Tasks that went back to the teacher and are with it still."""
    given = {"since": now - timedelta(days=_LOST_DAYS), "retired": RETIRED, "canary": CANARY, "live": LIVE}
    answered = {one.task for one in known if one.stage in (CANARY, LIVE)}
    for task, candidate, reason in log.query(_LOST, given | {"superseded": SUPERSEDED}):
        if task not in answered:
            yield Need(WARN, f"{task} went back to the teacher: {reason}.", f"It was with {candidate}.", _page(task))


def _runs_that_failed(newest: Sequence[Run]) -> Iterator[Need]:
    """Jobs whose last run that is over did not end well."""
    seen: set[str] = set()
    for run in newest:
        if run.state != ENDED or run.job in seen:
            continue
        seen.add(run.job)
        if run.outcome in (FAILED, INTERRUPTED):
            told = f": {run.detail}" if run.detail else ""
            yield Need(WARN, f"The last run of {run.job} {_ENDINGS[run.outcome]}{told}", "", "/ui/schedule")


_ENDINGS = {FAILED: "failed", INTERRUPTED: "was interrupted"}


def _waiting(log: Log, known: Sequence[Candidate], settings: Settings) -> Iterator[Need]:
    """Proofs that wait for an operator."""
    for one in known:
        by_hand = settings.router.tasks.get(one.task, TaskSettings()).promote == "manual"
        if by_hand and one.stage == SHADOW and passes(log, one, settings.router.slice_floor):
            yield Need(INFO, f"{one.id} has passed and waits to be promoted.", "", _page(one.task))


def _sunsets(log: Log, settings: Settings, now: datetime) -> Iterator[Need]:
    for one in sunsets(log, settings.teacher.sunsets, now):
        if one.come or one.since - now < timedelta(days=_SUNSET_DAYS):
            yield Need(WARN if one.successor else BAD, f"{in_words(one, now)}.")


def _learning(log: Log, settings: Settings) -> Iterator[Need]:
    """Budgets for learning that are nearly used up: what is over them waits for the next month."""
    budgets = Learning(log, settings.router, settings.learning_lock)
    for task in settings.router.tasks:
        account = budgets.account(task)
        if account is not None and (used := account.used) >= BUDGET:
            told = f"{used:.0%} of the learning budget of {task} is used this month."
            yield Need(WARN if used >= 1 else INFO, told, "What has no room in it waits.", _page(task))


def _worth_distilling(
    log: Log, known: Sequence[Candidate], settings: Settings, now: datetime
) -> Iterator[Need]:  # fmt: skip
    """The largest task without a candidate, if it is large enough."""
    taken = {one.task for one in known}
    for one in by_task(log, now - timedelta(days=_MONTH_DAYS)):
        enough = one.volume.exchanges >= max(WORTH, settings.distiller.min_exchanges)
        if one.task is not None and one.task not in taken and enough:
            told = f"{one.task} had {one.volume.exchanges:,} exchanges in {_MONTH_DAYS} days and has no student."
            yield Need(INFO, told, "Its page says whether it is worth distilling.", _page(one.task))


def _page(task: str) -> str:
    return f"/ui/tasks/{quote(task, safe='')}"
