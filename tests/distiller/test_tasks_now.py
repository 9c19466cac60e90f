from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distiller.tasks_now import Retired, retired_since, task_detail, tasks_now
from proxy.log import Log
from router.registry import CANARY, LIVE, RETIRED, SUPERSEDED, move
from router.settings import RouterSettings
from tests.logs import migrated
from tests.router.conftest import TASK, add_rows, insert, judged, known, now

NOW = datetime.now(UTC)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def spend(log: Log, usd: float | None, task: str | None = TASK, hours_ago: float = 1.0) -> None:
    row = {"id": "1", "ts": NOW - timedelta(hours=hours_ago), "task": task, "kind": "teacher", "usd": usd}
    add_rows(log, "spend", [row])


def test_a_day_of_traffic_is_counted_as_the_log_has_it(log: Log) -> None:
    insert(log, ["a", "b", "c"], ts=NOW - timedelta(hours=2), latency_ms=100.0)
    insert(log, ["d"] * 5, ts=NOW - timedelta(minutes=1), latency_ms=300.0, served_by="student-1")
    insert(log, ["e"], ts=NOW - timedelta(hours=3), status=503, fallback="candidate timed out", latency_ms=900.0)
    insert(log, ["f"], ts=NOW - timedelta(hours=3), partial=True)
    insert(log, ["old"], ts=NOW - timedelta(days=2))
    insert(log, ["g"], ts=NOW - timedelta(hours=1), served_by="stillroom", path="/v1/feedback")
    insert(log, ["h"], ts=NOW - timedelta(hours=1), task=None)
    for usd in (1.5, 0.25, None):
        spend(log, usd)
    spend(log, 9.0, hours_ago=30)
    one, nameless = tasks_now(log, NOW)
    assert (one.task, one.exchanges, one.by_candidate, one.fallbacks, one.failed) == (TASK, 10, 5, 1, 2)
    assert (one.a_minute, one.median_ms, one.usd, one.unpriced) == (1.0, 300.0, 1.75, 1)
    assert (one.stage, one.candidate) == ("", "")
    assert (nameless.task, nameless.exchanges, nameless.usd) == (None, 1, None)


def test_the_candidate_furthest_on_stands_for_its_task(log: Log) -> None:
    move(log, known(log, "student-1"), LIVE, "proved")
    known(log, "student-2")
    (task,) = tasks_now(log, NOW)
    assert (task.task, task.stage, task.candidate, task.exchanges, task.usd) == (TASK, "live", "student-1", 0, None)
    move(log, now(log, "student-1"), RETIRED, "audit refuted parity")
    move(log, now(log, "student-2"), CANARY, "proved", share=0.05)
    (task,) = tasks_now(log, NOW)
    assert (task.stage, task.share, task.candidate) == ("canary", 0.05, "student-2")


def test_who_was_taken_back_is_told_and_who_was_followed_is_not(log: Log) -> None:
    for name, stage, reason in (
        ("student-1", LIVE, "audit refuted parity"),
        ("student-2", LIVE, f"{SUPERSEDED}student-3"),
        ("student-3", "shadow", "parity refuted"),
    ):
        candidate = known(log, name)
        if stage == LIVE:
            move(log, candidate, LIVE, "proved")
        move(log, now(log, name), RETIRED, reason)
    assert retired_since(log, NOW - timedelta(days=1)) == (Retired(TASK, "student-1", "audit refuted parity"),)
    assert retired_since(log, datetime.now(UTC)) == ()


def test_a_task_in_detail_is_its_candidates_and_their_moves(log: Log) -> None:
    assert task_detail(log, TASK, RouterSettings()).candidates == []
    candidate = known(log)
    judged(log, candidate, [1.0] * 10)
    move(log, candidate, CANARY, "by hand", share=0.01)
    found = task_detail(log, TASK, RouterSettings())
    assert [one["candidate"] for one in found.candidates] == ["student-1"]
    assert "not yet" in found.candidates[0]["verdict"]
    assert [(one.before, one.after, one.reason) for one in found.moves] == [
        ("shadow", "canary", "by hand"), ("", "shadow", "registered"),
    ]  # fmt: skip
