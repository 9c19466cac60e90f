"""Frames as a test wants them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from distiller.frame import EngineNow, Frame, Logged, MoneyNow
from distiller.scrape import Flow, Scrape
from distiller.tasks_now import TaskNow
from proxy.vitals import Waiting

AT = datetime(2026, 11, 5, 12, 30, tzinfo=UTC)
SUMS = {"requests": 1204.0, "captured": 1200.0, "opted_out": 2.0, "dropped": 0.0, "in_progress": 2.0}


def task_now(name: str | None, **changes: Any) -> TaskNow:
    known = TaskNow(
        task=name, stage="", share=0.0, candidate="", a_minute=1.0, exchanges=100, by_candidate=0, fallbacks=0,
        failed=0,
        median_ms=120.0, slow_ms=1500.0, usd=0.5, unpriced=0, last=AT,
    )  # fmt: skip
    return replace(known, **changes)


TASKS = (
    task_now("triage", stage="live", share=1.0, candidate="student-1", by_candidate=80, a_minute=12.0, usd=2.0),
    task_now("orders", stage="canary", share=0.05, candidate="student-2", unpriced=3, slow_ms=12_000.0),
    task_now(None, exchanges=7, usd=None, unpriced=7, failed=1),
)


def frame(**changes: Any) -> Frame:
    """A system in order, with three tasks."""
    known = Frame(
        at=AT, home="stillroom-data", running=True, logged=Logged(TASKS), no_log="",
        engines=[EngineNow("vLLM", "up", "", 2, {})], learning=[], spool=Waiting(0, 0, None), free=50 * 10**9,
        counted=Scrape(1.0, {f"stillroom_{name}": count for name, count in SUMS.items()}), no_admin="",
        flow=Flow(12.5, 0.0, 80.0, 400.0),
    )  # fmt: skip
    return replace(known, **changes)


def money(**changes: Any) -> MoneyNow:
    """A ledger of round figures."""
    return replace(MoneyNow(100.0, 0, 40.0, 30.0), **changes)
