import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from distiller.notices import Drops, Outside, by_key, dropped, moments, states
from distiller.runs import FAILED, OK, REFUSED, End, Run, Wish, begin, finish, once_more, queue, record, unended
from distiller.settings import Settings
from proxy.accounts import Accounts
from proxy.keys import create_key
from proxy.limits import Limits, Need, Reservation, Used
from proxy.log import Log
from proxy.settings import SunsetSettings, TeacherSettings
from router.lifecycle import FELL, rollback
from router.registry import CANARY, LIVE, RETIRED, move
from router.settings import RouterSettings, TaskSettings
from tests.logs import migrated
from tests.router.conftest import TASK, known, now, spent

NOW = datetime.now(UTC)
COUNTS = """
import sys
from proxy.counters import Counters
counters = Counters()
counters.dropped.labels("spool").inc(int(sys.argv[1]))
counters.dropped.labels("disk").inc()
counters.flush()
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=5)


def told(log: Log) -> list[tuple[str, str]]:
    return [(one.event, one.text) for one in moments(log, soon())]


def lasting(log: Log, settings: Settings, outside: Outside = Outside(), at: datetime | None = None) -> list[str]:  # noqa: B008
    return [f"{one.event}: {one.text}" for one in states(log, settings, outside, at or soon())]


def test_stages_are_told_when_they_change_for_clients(log: Log) -> None:
    student = known(log)
    move(log, student, CANARY, "parity proved on 300 exchanges", share=0.01)
    move(log, now(log), CANARY, "50 of 50 answered", share=0.05)
    move(log, now(log), LIVE, "50 of 50 answered")
    assert told(log) == [
        ("promotion", f"{student.id} of {TASK} is now canary"),
        ("promotion", f"{student.id} of {TASK} is now live"),
    ]
    rollback(log, TASK, "a customer said: my card is 4111")
    event, text = told(log)[-1]
    assert (event, text) == ("rollback", f"The teacher answers {TASK} again: {student.id} was taken back")


@pytest.mark.parametrize(
    ("reason", "event"),
    [
        (f"{FELL}0.8 over the last 40 comparisons: below 0.95", "parity_lost"),
        ("9 of the latest 9 live exchanges failed", "rollback"), ("superseded by student-2", None),
    ],
)  # fmt: skip
def test_why_a_student_was_taken_back_decides_what_it_is_called(log: Log, reason: str, event: str | None) -> None:
    student = known(log)
    move(log, student, LIVE, "promoted")
    move(log, now(log), RETIRED, reason)
    assert [one.event for one in moments(log, soon())][1:] == ([event] if event else [])
    if event:
        assert told(log)[1][1].endswith(f"was taken back: {reason}")


def test_a_student_nobody_was_answered_by_is_no_news(log: Log) -> None:
    move(log, known(log), RETIRED, "parity refuted: upper bound 0.9")
    assert told(log) == []


def test_what_is_a_day_old_is_no_news(log: Log) -> None:
    move(log, known(log), LIVE, "promoted")
    assert len(list(moments(log, soon() + timedelta(hours=23)))) == 1
    assert list(moments(log, soon() + timedelta(hours=25))) == []


def test_a_run_that_failed_is_told_once_it_is_not_tried_again(log: Log) -> None:
    queue(log, Wish("distill:a", "distill", "cron 1", "so", NOW, "a"), NOW)
    first = begun(log)
    finish(log, first, End(FAILED, "in 'a secret text'"), NOW, once_more(first, "so", NOW, 2))
    assert told(log) == []
    finish(log, begun(log), End(FAILED, "in 'a secret text'"), NOW)
    ((event, text),) = told(log)
    assert (event, text) == (
        "run_failed", "distill:a failed, for good after attempt 2: `stillroom schedule list` says why",
    )  # fmt: skip


def begun(log: Log) -> Run:
    (run,) = unended(log)
    assert begin(log, run, None, NOW)
    return unended(log)[0]


def test_nothing_wrong_is_nothing_to_tell(log: Log, tmp_path: Path) -> None:
    assert lasting(log, Settings(home=str(tmp_path))) == []


def test_a_budget_is_told_at_four_fifths_and_at_its_end(log: Log, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    create_key(settings.keys, "bot", (), Limits(None, None, 10.0), True)
    create_key(settings.keys, "free", (), Limits(None, None, None), True)
    accounts = Accounts(settings.limits)
    at = NOW.timestamp()

    def use(usd: float) -> None:
        need = Need(0, round(usd * 1e9))
        made = accounts.reserve("bot", Limits(None, None, 10.0), need, at)
        assert isinstance(made, Reservation)
        accounts.settle(made, Used(0, need.nano), at)

    use(7.9)
    assert lasting(log, settings, at=NOW) == []
    use(0.2)
    assert lasting(log, settings, at=NOW) == ["budget_80: Key bot has used 81% of its budget of this month"]
    use(2.0)
    assert [one.split(":")[0] for one in lasting(log, settings, at=NOW)] == ["budget_80", "budget_100"]
    accounts.close()


def test_a_budget_for_learning_is_told_too(log: Log, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path), router=RouterSettings(tasks={TASK: TaskSettings(learning_budget=10.0)}))
    spent(log, "judge", 7.9)
    assert lasting(log, settings) == []
    spent(log, "shadow", 0.2)
    assert lasting(log, settings) == [f"budget_80: 81% of the learning budget of {TASK} is used this month"]
    spent(log, "audit", 2.0)
    assert [one.split(":")[0] for one in lasting(log, settings)] == ["budget_80", "budget_100"]


def test_what_has_no_price_and_what_was_dropped_is_counted(log: Log, tmp_path: Path) -> None:
    spent(log, "teacher", None)
    spent(log, "teacher", 1.0)
    assert lasting(log, Settings(home=str(tmp_path)), Outside(dropped=3)) == [
        "unpriced: 1 charges of the last day have no price: set [money.prices] for the models in use",
        "dropped: 3 exchanges were not recorded: see stillroom_dropped_total at /metrics for why",
    ]
    assert lasting(log, Settings(home=str(tmp_path)), at=NOW + timedelta(days=2)) == []


def test_a_models_end_is_told_in_time(log: Log, tmp_path: Path) -> None:
    teacher = TeacherSettings(sunsets=(SunsetSettings("gpt-4o", date(2027, 3, 31), "gpt-5"),))
    settings = Settings(home=str(tmp_path), teacher=teacher)
    day = datetime(2027, 3, 31, tzinfo=UTC)
    assert lasting(log, settings, at=day - timedelta(days=31)) == []
    ((text),) = lasting(log, settings, at=day - timedelta(days=30))
    assert text.startswith("sunset: gpt-4o shuts down in 30 days")
    before, after = (next(states(log, settings, Outside(), day + timedelta(days=days))) for days in (-1, 1))
    assert before.key != after.key


def test_an_engine_that_is_down_is_told(log: Log, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    assert lasting(log, settings, Outside("up")) == lasting(log, settings, Outside("starting")) == []
    assert lasting(log, settings, Outside("down", students_down=1)) == [
        "student_down: An engine that serves students is down: the teacher answers"
    ]
    assert lasting(log, settings, Outside("up", students_down=2)) == [
        "student_down: 2 students that should answer are not served: the teacher answers"
    ]


def test_a_certificate_that_cannot_be_renewed_is_told_until_it_can(log: Log, tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    for cause, outcome, count in (("1", REFUSED, 1), ("2", "skipped", 1), ("3", OK, 0)):
        record(log, Wish("certificates", "certificates", cause, "cron", NOW), End(outcome, "student-1"), NOW)
        assert len(lasting(log, settings)) == count


def test_drops_are_what_workers_counted_and_pass_after_an_hour(tmp_path: Path) -> None:
    assert dropped(tmp_path / "nothing") == 0
    drops = Drops(tmp_path)
    assert drops.now(NOW) == 0
    count(tmp_path, 2)
    assert drops.now(NOW) == 3
    assert drops.now(NOW + timedelta(minutes=59)) == 3
    assert drops.now(NOW + timedelta(minutes=61)) == 0
    count(tmp_path, 1)
    assert drops.now(NOW + timedelta(minutes=62)) == 5


def count(folder: Path, drops: int) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", COUNTS, str(drops)], env=environment, check=True)


def test_only_what_is_wanted_is_kept(log: Log) -> None:
    move(log, known(log), LIVE, "promoted")
    assert len(by_key(moments(log, soon()), ())) == 1
    assert by_key(moments(log, soon()), ("rollback",)) == {}
