import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from distiller.foreman import Foreman, Rules
from distiller.pauses import lift, put
from distiller.quiet import quiet_hours
from distiller.runs import DISTILL, FAILED, INTERRUPTED, OK, REFUSED, End, Run, Wish, begin, queue, runs, unended
from proxy.log import Log
from router.freezes import freeze
from tests.clocks import Clock
from tests.logs import migrated
from tests.router.conftest import add_rows, insert

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


class Works:
    """Does every kind as it is told to, and knows what was at work at once."""

    def __init__(self) -> None:
        self.ends: dict[str, End] = {}
        self.holding: asyncio.Event | None = None
        self.now: list[str] = []
        self.seen: list[tuple[str, str, str | None]] = []
        self.most = 0

    async def __call__(self, run: Run, gpu: str) -> End:
        assert run.job not in self.now
        self.now.append(run.job)
        self.most = max(self.most, len(self.now))
        self.seen.append((run.job, gpu, run.until))
        try:
            await (self.holding.wait() if self.holding else asyncio.sleep(0))
        finally:
            self.now.remove(run.job)
        return self.ends.get(run.job, End(OK, "done"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


def foreman(log: Log, works: Works, clock: Clock, tmp_path: Path, rules: Rules = Rules()) -> Foreman:  # noqa: B008
    kinds = dict.fromkeys((DISTILL, "retention", "compaction", "backup"), works)
    return Foreman(log, kinds, rules, lambda run, now: Decimal(1), tmp_path / "alive", clock)


def asked(log: Log, job: str, cause: str = "cron 1", **changes: object) -> None:
    task = job.partition(":")[2] or None
    given: dict[str, object] = {"kind": DISTILL if task else job, "reason": "so", "due": NOON, "task": task}
    assert queue(log, Wish(job=job, cause=cause, **(given | changes)), NOON)  # type: ignore[arg-type]


def outcomes(log: Log) -> list[tuple[str, str | None]]:
    return [(run.job, run.outcome) for run in reversed(runs(log))]


async def test_trainings_run_one_after_the_other_and_chores_beside_them(
    log: Log, works: Works, clock: Clock, tmp_path: Path
) -> None:
    works.holding = asyncio.Event()
    for job in ("distill:a", "distill:b", "retention", "compaction"):
        asked(log, job)
    boss = foreman(log, works, clock, tmp_path)
    boss.tick()
    await asyncio.sleep(0)
    assert sorted(works.now) == ["distill:a", "retention"]
    works.holding.set()
    await boss.settle()
    assert [job for job, *_ in works.seen] == ["distill:a", "retention", "distill:b", "compaction"]
    assert {outcome for _, outcome in outcomes(log)} == {OK}
    assert {run.usd for run in runs(log)} == {Decimal(1)}


async def test_each_gpu_has_one_training(log: Log, works: Works, clock: Clock, tmp_path: Path) -> None:
    works.holding = asyncio.Event()
    for task in "abc":
        asked(log, f"distill:{task}")
    boss = foreman(log, works, clock, tmp_path, Rules(gpus=("0", "1")))
    boss.tick()
    await asyncio.sleep(0)
    works.holding.set()
    await boss.settle()
    assert works.most == 2
    assert [gpu for _, gpu, _ in works.seen[:2]] == ["0", "1"]


async def test_a_job_is_never_two_at_once(log: Log, works: Works, clock: Clock, tmp_path: Path) -> None:
    works.holding = asyncio.Event()
    asked(log, "distill:a")
    boss = foreman(log, works, clock, tmp_path, Rules(gpus=("0", "1")))
    boss.tick()
    await asyncio.sleep(0)
    asked(log, "distill:a", "hand 1", by_hand=True)
    boss.tick()
    await asyncio.sleep(0)
    assert works.now == ["distill:a"]  # The works themselves say so too.
    works.holding.set()
    await boss.settle()
    assert len(works.seen) == 2


async def test_nothing_heavy_begins_in_quiet_hours_unless_a_person_asks(
    log: Log, works: Works, clock: Clock, tmp_path: Path
) -> None:
    boss = foreman(log, works, clock, tmp_path, Rules(quiet_hours("08:00-20:00", UTC)))
    for job in ("distill:a", "retention", "compaction"):
        asked(log, job)
    asked(log, "distill:b", by_hand=True)
    await boss.settle()
    assert sorted(job for job, *_ in works.seen) == ["compaction", "distill:b"]
    clock.now = NOON.replace(hour=19, minute=59)
    await boss.settle()
    assert len(works.seen) == 2
    clock.now = NOON.replace(hour=20)
    await boss.settle()
    assert sorted(job for job, *_ in works.seen[2:]) == ["distill:a", "retention"]


async def test_what_is_paused_waits(log: Log, works: Works, clock: Clock, tmp_path: Path) -> None:
    boss = foreman(log, works, clock, tmp_path)
    put(log, "distill:a", "audit week", NOON)
    put(log, "retention", "a migration", NOON)
    for job in ("distill:a", "distill:b", "retention"):
        asked(log, job)
    await boss.settle()
    assert [job for job, *_ in works.seen] == ["distill:b"]
    asked(log, "distill:a", "hand 1", by_hand=True)
    await boss.settle()
    assert [job for job, *_ in works.seen] == ["distill:b", "distill:a"]
    lift(log, "distill:a", "over", NOON)
    put(log, DISTILL, "no GPU today", NOON)
    await boss.settle()
    assert len(works.seen) == 2
    lift(log, DISTILL, "it is back", NOON)
    await boss.settle()
    assert [job for job, *_ in works.seen[2:]] == ["distill:a"]
    insert(log, ["a"], task="c")
    freeze(log, "c", "audit week")
    asked(log, "distill:c")
    await boss.settle()
    assert len(works.seen) == 3


async def test_what_failed_is_tried_again_ever_later_and_not_for_ever(
    log: Log, works: Works, clock: Clock, tmp_path: Path
) -> None:
    works.ends["distill:a"] = End(FAILED, "no room on the disk")
    boss = foreman(log, works, clock, tmp_path)
    asked(log, "distill:a")
    begun = []
    for minute in range(0, 200, 5):
        clock.now = NOON + timedelta(minutes=minute)
        before = len(works.seen)
        await boss.settle()
        begun += [minute] * (len(works.seen) - before)
    assert begun == [0, 10, 30]
    assert [(run.attempt, run.outcome) for run in reversed(runs(log))] == [(1, FAILED), (2, FAILED), (3, FAILED)]


@pytest.mark.parametrize(("outcome", "by_hand"), [(REFUSED, False), (FAILED, True), (OK, False)])
async def test_what_is_refused_or_was_asked_for_by_hand_is_not_tried_again(
    log: Log, works: Works, clock: Clock, tmp_path: Path, outcome: str, by_hand: bool
) -> None:
    works.ends["distill:a"] = End(outcome, "")
    asked(log, "distill:a", by_hand=by_hand)
    await foreman(log, works, clock, tmp_path).settle()
    assert outcomes(log) == [("distill:a", outcome)]


async def test_what_was_told_to_end_goes_on_and_that_is_no_attempt(
    log: Log, works: Works, clock: Clock, tmp_path: Path
) -> None:
    """Whoever stops the controller by Ctrl-C stops its training too, which may be seen first."""
    works.ends["distill:a"] = End(INTERRUPTED, "it was told to end; it goes on")
    asked(log, "distill:a", by_hand=True)
    boss = foreman(log, works, clock, tmp_path)
    boss.tick()
    await asyncio.sleep(0.01)
    boss.tick()
    (again,) = unended(log)
    assert (again.attempt, again.by_hand) == (1, True)
    assert outcomes(log)[0] == ("distill:a", INTERRUPTED)
    await boss.stop()


async def test_a_stop_is_no_attempt_and_what_was_done_goes_on(
    log: Log, works: Works, clock: Clock, tmp_path: Path
) -> None:
    (newest,) = insert(log, ["a"], task="a")
    works.holding = asyncio.Event()
    asked(log, "distill:a")
    boss = foreman(log, works, clock, tmp_path)
    boss.tick()
    await asyncio.sleep(0)
    await boss.stop()
    assert works.now == []
    insert(log, ["b"], task="a")
    (waits,) = unended(log)
    assert (waits.attempt, waits.until) == (1, newest)
    assert runs(log)[1].outcome == INTERRUPTED
    works.holding = None
    await foreman(log, works, clock, tmp_path).settle()
    assert works.seen == [("distill:a", "", newest), ("distill:a", "", newest)]


async def test_what_a_killed_controller_had_begun_goes_on_a_bounded_number_of_times(
    log: Log, works: Works, clock: Clock, tmp_path: Path
) -> None:
    insert(log, ["a"], task="a")
    asked(log, "distill:a")
    for killed in range(3):
        works.holding = asyncio.Event()
        boss = foreman(log, works, clock, tmp_path)
        assert len(boss.recover()) == min(killed, 1)
        boss.tick()  # Killed: what it had begun is never ended by it.
        clock.now += timedelta(hours=1)
    await asyncio.sleep(0)
    last = foreman(log, works, clock, tmp_path)
    (lost,) = last.recover()
    assert lost.attempt == 3
    assert unended(log) == []
    said = [run.detail for run in reversed(runs(log))]
    assert said[0] == "its controller was ended while it ran; it goes on"
    assert said[2] == "its controller was ended while it ran: given up after attempt 3"
    assert {run.outcome for run in runs(log)} == {INTERRUPTED}
    # By the file's time, and not by when somebody looked.
    assert all(run.ended == run.started for run in runs(log))


async def test_what_had_just_finished_is_not_done_again(log: Log, works: Works, clock: Clock, tmp_path: Path) -> None:
    asked(log, "distill:a")
    begin(log, unended(log)[0], None, NOON)
    row = {"id": "1", "ts": NOON, "task": "a", "kind": "training", "model": "student-1", "usd": 1.0}
    add_rows(log, "spend", [row])
    foreman(log, works, clock, tmp_path).recover()
    (run,) = runs(log)
    assert (run.outcome, run.student) == (OK, "student-1")


async def test_a_bug_in_a_work_is_raised(log: Log, works: Works, clock: Clock, tmp_path: Path) -> None:
    async def broken(run: Run, gpu: str) -> End:
        raise ZeroDivisionError

    asked(log, "retention")
    boss = Foreman(log, {"retention": broken}, Rules(), lambda *_: None, tmp_path / "alive", clock)
    boss.tick()
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        boss.raise_faults()
    await boss.stop()
    assert [run.state for run in unended(log)] == ["started"]
