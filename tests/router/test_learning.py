import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proxy.ids import ulid
from proxy.log import Log, open_log
from proxy.settings import LogSettings
from router.learning import Account, Learning
from router.settings import RouterSettings, TaskSettings
from tests.router.conftest import PATH, TASK, add_rows

NOW = datetime(2026, 6, 15, tzinfo=UTC)
SETTINGS = RouterSettings(tasks={TASK: TaskSettings(learning_budget=1.0), "free": TaskSettings()})


def learning(log: Log, tmp_path: Path, now: datetime = NOW) -> Learning:
    return Learning(log, SETTINGS, tmp_path / "state" / "learning.lock", lambda: now)


def paid(log: Log, kind: str, usd: float | None, ts: datetime = NOW, **columns: Any) -> None:
    row = {"id": ulid(), "ts": ts, "task": TASK, "kind": kind, "usd": usd, "quantity": 1.0, "path": None}
    add_rows(log, "spend", [row | columns])


def test_a_task_without_a_budget_is_free(log: Log, tmp_path: Path) -> None:
    one = learning(log, tmp_path)
    assert one.account("free") is one.account("another") is None
    with one.exchanges("free", ["judge"], 16) as most, one.up_to("free", Decimal(5)) as granted:
        assert (most, granted) == (16, 5)
    assert log.query("SELECT count(*) FROM reservations") == [(0,)]


def test_what_was_spent_this_month_counts_whoever_spent_it(log: Log, tmp_path: Path) -> None:
    for kind in ("shadow", "judge", "ceiling", "audit", "rationale", "repeat", "training"):
        paid(log, kind, 0.05)
    paid(log, "judge", 0.3, datetime(2026, 5, 31, 23, 59, tzinfo=UTC))
    paid(log, "teacher", 9.0, path=PATH)
    paid(log, "candidate", 9.0)
    assert learning(log, tmp_path).account(TASK) == Account(Decimal("1.0"), Decimal("0.35"), Decimal(0))


def test_an_estimate_is_set_aside_until_the_charges_are_there(log: Log, tmp_path: Path) -> None:
    paid(log, "teacher", 0.01, path=PATH)
    paid(log, "teacher", 0.03, path=PATH)
    one, other = learning(log, tmp_path), learning(log, tmp_path)
    with one.exchanges(TASK, ["ceiling"], 16) as most:  # Twice the mean of 0.02 for each of them.
        assert most == 16
        assert other.account(TASK) == Account(Decimal("1.0"), Decimal(0), Decimal("0.64"))
        with other.exchanges(TASK, ["ceiling"], 16) as few:
            assert few == 9
            with other.exchanges(TASK, ["ceiling"], 16) as none:
                assert none == 0
            assert "learning budget of $1.00 a month $0.0000 are spent and $1.0000 set aside" in other.waits[TASK]
    assert (one.account(TASK) or Account(*[Decimal(0)] * 3)).left == 1


def test_a_kind_that_was_paid_before_is_known_and_a_judge_is_dear(log: Log, tmp_path: Path) -> None:
    paid(log, "teacher", 0.02, path=PATH)
    one = learning(log, tmp_path)
    with one.exchanges(TASK, ["judge"], 16) as most:
        assert most == 12  # 4 times what the teacher asks: 0.08 each.
    paid(log, "judge", 0.005)
    with one.exchanges(TASK, ["judge", "ceiling"], 100) as most:
        assert most == int(Decimal("0.995") / Decimal("0.05"))


def test_what_has_no_price_waits_and_says_so(log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paid(log, "teacher", None, path=PATH)
    one = learning(log, tmp_path)
    for _ in range(2):
        with one.exchanges(TASK, ["shadow"], 16) as most:
            assert most == 0
    assert [record.message for record in caplog.records] == [
        f"learning about task {TASK} waits: what an exchange costs is unpriced, so no budget can be kept: "
        "set [money.prices]"
    ]


def test_what_was_asked_and_has_no_price_is_not_taken_for_free(log: Log, tmp_path: Path) -> None:
    paid(log, "teacher", 0.02, path=PATH)
    paid(log, "judge", None)
    one = learning(log, tmp_path)
    with one.exchanges(TASK, ["judge"], 16) as most:
        assert most == 0
    with one.exchanges(TASK, ["ceiling"], 16) as most:
        assert most == 16


def test_an_overdrawn_budget_has_nothing_left_and_waits_for_the_next_month(log: Log, tmp_path: Path) -> None:
    paid(log, "audit", 1.5)
    paid(log, "teacher", 0.01, path=PATH)
    one = learning(log, tmp_path)
    with one.exchanges(TASK, ["ceiling"], 16) as most, one.up_to(TASK, Decimal("0.1")) as granted:
        assert (most, granted) == (0, 0)
    assert TASK in one.waits
    later = learning(log, tmp_path, datetime(2026, 7, 1, tzinfo=UTC))
    with later.exchanges(TASK, ["ceiling"], 16) as most:
        assert most == 16


def test_what_a_killed_process_had_set_aside_counts_for_a_day(log: Log, tmp_path: Path) -> None:
    program = (
        "import os, sys; from decimal import Decimal; from pathlib import Path\n"
        "from proxy.log import open_log; from proxy.settings import LogSettings\n"
        "from router.learning import Learning; from router.settings import RouterSettings, TaskSettings\n"
        "home = Path(sys.argv[1])\n"
        f"settings = RouterSettings(tasks={{{TASK!r}: TaskSettings(learning_budget=1.0)}})\n"
        "one = Learning(open_log(LogSettings(), home), settings, home / 'state' / 'learning.lock')\n"
        f"with one.up_to({TASK!r}, Decimal('0.75')): os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env={**os.environ}, check=False)
    assert done.returncode == 9
    now = datetime.now(UTC)
    for hours, reserved in ((1, "0.75"), (25, "0")):
        found = learning(log, tmp_path, now + timedelta(hours=hours)).account(TASK)
        assert found is not None
        assert found.reserved == Decimal(reserved)


def test_those_who_ask_at_once_never_set_aside_more_than_there_is(log: Log, tmp_path: Path) -> None:
    """Eight threads with connections of their own, all inside at the same time."""
    inside, granted = threading.Barrier(8, timeout=60), []

    def spend() -> None:
        own = open_log(LogSettings(), tmp_path)
        with learning(own, tmp_path).up_to(TASK, Decimal("0.3"), Decimal("0.1")) as usd:
            granted.append(usd)
            inside.wait()
        own.close()

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted, reverse=True) == [Decimal("0.3")] * 3 + [Decimal("0.1")] + [0] * 4
    assert (learning(log, tmp_path).account(TASK) or Account(*[Decimal(0)] * 3)).reserved == 0
