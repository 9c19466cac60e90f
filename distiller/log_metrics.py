"""Owns what the log says, as metrics: money, retirements, runs, budgets, the ends of models.

Read once a minute by a connection of its own in a thread, so that no round, no scrape and no engine waits for it; the
metrics are those of the last reading, and say when it was. Counters are sums over all the log, so they go on where they
were after a restart; what is known beforehand begins at zero, so that its first time shows as a rise. No label holds
what a client chooses, nor a task, a key or a model. Must not write.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from distiller.runs import OUTCOMES
from distiller.settings import Settings
from proxy.accounts import read_standing
from proxy.errors import StillroomError, Unavailable
from proxy.keys import read_keys
from proxy.log import Latest, Log, open_log
from proxy.waiting import pause
from router.figures import charges, totals, unpriced
from router.learning import Learning
from router.ledger import report
from router.registry import CANARY, CAUSES, EVIDENCE, LIVE, RETIRED, SHADOW, cause_of
from router.sunset import Sunset, sunsets

_log = logging.getLogger("stillroom.log_metrics")

READ_SECONDS = 60.0
OTHER = "other"
SPENT_FOR = (
    "teacher", "candidate", "fallback", "shadow", "audit", "ceiling", "judge", "rationale", "repeat", "replay",
    "training", "serving", OTHER,
)  # fmt: skip
RUNS = ("distill", "retention", "compaction", "backup", "prices", "certificates", OTHER)
STAGES = (SHADOW, CANARY, LIVE)
_RETIRED = f"SELECT stage_from, reason FROM transitions WHERE stage_to = '{RETIRED}'"
_RUNS = "SELECT kind, outcome, count(*) FROM runs WHERE outcome IS NOT NULL GROUP BY ALL"


@dataclass(frozen=True, slots=True)
class Books:
    """What changes with the log only. US dollars; None is unknown."""

    spent: Mapping[str, float]
    tokens: Mapping[str, int]
    avoided: float | None
    net: float | None
    retired: Mapping[tuple[str, str], int]
    """By the stage it came from, and the cause."""
    runs: Mapping[tuple[str, str], int]
    """By kind and outcome."""


class LogMetrics:
    """Of one log, as of the last reading; `metrics` may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is read yet."""
        self._settings = settings
        self._metrics: tuple[Metric, ...] = ()

    def metrics(self) -> tuple[Metric, ...]:
        """None before the first reading."""
        return self._metrics

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`; what cannot be read now is read later."""
        books: Latest[Books] | None = None
        while not stop.is_set():
            try:
                if books is None:
                    books = await asyncio.to_thread(self._open)
                self._metrics = await asyncio.to_thread(self._read, books, datetime.now(UTC))
            except (StillroomError, duckdb.Error, OSError) as error:
                _log.error("the log's metrics could not be read, trying again: %s", _first_line(error))
            await pause(stop, READ_SECONDS)
        if books is not None:
            books.log.close()

    def _open(self) -> Latest[Books]:
        log = open_log(self._settings.log, self._settings.folder, read_only=True)
        return Latest(log, lambda: read_books(log))

    def _read(self, books: Latest[Books], now: datetime) -> tuple[Metric, ...]:
        return (*of_books(books.now()), *of_moment(books.log, self._settings, now))


def read_books(log: Log) -> Books:
    """As the log has it now."""
    spent: dict[str, float] = dict.fromkeys(SPENT_FOR, 0.0)
    for line in charges(log):
        kind = line.kind if line.kind in SPENT_FOR else OTHER
        spent[kind] += float(line.usd or 0)
    volume, _, _ = totals(log)
    retired = {(stage, cause): 0 for stage in STAGES for cause in (EVIDENCE, *CAUSES.values())}
    for stage, reason in log.query(_RETIRED):
        if stage in STAGES:
            retired[stage, cause_of(reason)] += 1
    runs = {(kind, outcome): 0 for kind in RUNS for outcome in OUTCOMES}
    for kind, outcome, count in log.query(_RUNS):
        runs[kind if kind in RUNS else OTHER, outcome] += count
    ledger = report(log)
    tokens = {"prompt": volume.prompt_tokens, "cached": volume.cached_tokens, "completion": volume.completion_tokens}
    return Books(spent, tokens, ledger.avoided_usd, ledger.net_usd, retired, runs)


def keys_used(settings: Settings, now: datetime) -> float | None:
    """The largest share that a key has used of its budget this month; None where no key has one."""
    shares = []
    for key in read_keys(settings.keys):
        if key.limits.budget_usd and not key.revoked:
            with contextlib.suppress(Unavailable):  # A damaged account is told where it is used.
                shares.append(read_standing(settings.limits, key.name, now.timestamp()).spent / key.limits.budget_usd)
    return max(shares, default=None)


def learning_used(log: Log, settings: Settings, now: datetime) -> float | None:
    """The largest share that a task has used of its budget for learning this month; None where none has one."""
    budgets = Learning(log, settings.router, settings.learning_lock, lambda: now)
    return max((account.used for account in map(budgets.account, settings.router.tasks) if account), default=None)


def days_left(ends: Sequence[Sunset], now: datetime) -> float | None:
    """Days until the next of the models ends that have not ended yet; None where no end is known."""
    return min(((one.since - now).total_seconds() / 86400 for one in ends if not one.come), default=None)


def of_books(books: Books) -> Iterable[Metric]:
    """What the books say."""
    yield _counter("spent_usd", "US dollars paid", ("kind",), (((kind,), usd) for kind, usd in books.spent.items()))
    yield _counter("tokens", "Tokens of exchanges", ("kind",), (((kind,), n) for kind, n in books.tokens.items()))
    yield _gauge("avoided_usd", "US dollars the teacher would have asked for what candidates answered", books.avoided)
    yield _gauge("net_usd", "US dollars avoided, less all that it took", books.net)
    yield _counter("retired", "Candidates retired", ("stage", "cause"), books.retired.items())
    yield _counter("runs", "Runs of the schedule that ended", ("kind", "outcome"), books.runs.items())


def of_moment(log: Log, settings: Settings, now: datetime) -> Iterable[Metric]:
    """What changes with the time, and in files beside the log."""
    ends = sunsets(log, settings.teacher.sunsets, now)
    recent = unpriced(log, now - timedelta(days=1))
    without = sum(one.come and not one.successor for one in ends)
    yield _gauge("unpriced_charges", "Charges without a price, of today and yesterday", recent)
    yield _shares({"key": keys_used(settings, now), "learning": learning_used(log, settings, now)})
    yield _gauge("teacher_sunset_days", "Until the next model of the teacher ends", days_left(ends, now))
    yield _gauge("teacher_models_ended", "Models that have ended and have no successor", without)
    yield _gauge("log_read_timestamp_seconds", "When the log was last read for these metrics", now.timestamp())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def _shares(shares: Mapping[str, float | None]) -> Metric:
    family = GaugeMetricFamily("stillroom_budget_used_ratio", "The largest share used of a budget", labels=["budget"])
    for budget, share in shares.items():
        if share is not None:
            family.add_metric([budget], share)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = CounterMetricFamily(f"stillroom_{name}", text, labels=labels)
    for words, value in values:
        family.add_metric(words, value)
    return family


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"stillroom_{name}", text)
    if value is not None and math.isfinite(value):
        family.add_metric([], value)
    return family
