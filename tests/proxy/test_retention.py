import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.errors import Unavailable
from proxy.freeing import maintaining
from proxy.ids import ulid
from proxy.log import Log
from proxy.retention import maintain, oldest_kept
from proxy.settings import LogSettings
from tests.logs import migrated
from tests.proxy.test_freeing import add, holding, parquet

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=3)
# Ends itself, as kill -9 would, at the nth statement or file that maintenance gets to.
KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
import proxy.retention
from proxy.log import Log
from proxy.settings import LogSettings
left = [int(sys.argv[2])]
def counted(frame, event, argument):
    if event == "c_call" and getattr(argument, "__name__", "") == "execute":
        left[0] -= 1
        if not left[0]:
            import threading
            threading.Timer(float(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
sys.setprofile(counted)
home = Path(sys.argv[1])
proxy.retention.maintain(LogSettings(), home, home / "spool", 2, datetime.fromisoformat(sys.argv[4]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    return log


def test_days_are_whole_and_in_utc() -> None:
    now = datetime.fromisoformat("2026-03-10T01:30:00+05:00")
    assert oldest_kept(3, now) == datetime(2026, 3, 6, tzinfo=UTC)


def test_old_days_leave_log_and_disk_and_the_evidence_stays(log: Log, tmp_path: Path) -> None:
    for day in range(5):
        add(log, f"{day}-", 20, f"~canary{day}", days=day)
    add(log, "small-", 3, "~canary4", days=4)
    log.query(
        "INSERT INTO verdicts (exchange, verdict, answer, yardstick_answer) VALUES "
        "('4-1', 0.2, '~canary4', NULL), ('4-1', 0.4, NULL, '~canary4'), ('4-1', 0.5, '~canary4', '~canary4'), "
        "('0-1', 1.0, 'kept', 'kept too')"
    )
    log.query("INSERT INTO spend (exchange, usd) VALUES ('4-1', 2.5)")
    log.query("INSERT INTO rationales (exchange, text) VALUES ('4-1', '~canary4'), ('0-1', 'kept')")
    log.query("INSERT INTO repeats (exchange, answer) VALUES ('4-1', '~canary4'), ('0-1', 'kept')")
    done = maintain(LogSettings(), tmp_path, tmp_path / "spool", 2, NOW)
    assert (done.dropped, log.query("SELECT DISTINCT left(id, 1) FROM exchanges ORDER BY 1")) == (
        43,
        [("0",), ("1",), ("2",)],
    )
    assert holding(tmp_path, "~canary4")  # Somebody may still be reading.
    assert maintain(LogSettings(), tmp_path, tmp_path / "spool", 5, LATER).files > 0
    assert holding(tmp_path, "~canary3") | holding(tmp_path, "~canary4") == set()
    assert holding(tmp_path, "~canary2")
    assert log.query("SELECT verdict, answer, yardstick_answer FROM verdicts ORDER BY verdict") == [
        *((verdict, None, None) for verdict in (0.2, 0.4, 0.5)), (1.0, "kept", "kept too"),
    ]  # fmt: skip
    assert log.query("SELECT exchange, usd FROM spend") == [("4-1", 2.5)]


def test_no_exchange_goes_before_its_segment_which_a_repair_would_take_again(log: Log, tmp_path: Path) -> None:
    spool, names = tmp_path / "spool", [ulid(), ulid(), None]
    (spool / "ingested").mkdir(parents=True)
    for name in names:
        add(log, f"{name}-", 5, "text", days=5)
        log.query("UPDATE exchanges SET segment = ? WHERE starts_with(id, ?)", [name, f"{name}-"])
    places = [spool / f"{names[0]}.ndjson", spool / "ingested" / f"{names[1]}.ndjson"]
    log.query("UPDATE exchanges SET segment = segment || '.ndjson'")
    for place in places:
        place.touch()
    assert maintain(LogSettings(), tmp_path, spool, 2, NOW).dropped == 5
    for place in places:
        place.unlink()
        assert maintain(LogSettings(), tmp_path, spool, 2, NOW).dropped == 5
    assert log.query("SELECT sum(exchanges) FROM carried") == [(15,)]


def test_nothing_to_do_changes_nothing_and_zero_keeps_all(log: Log, tmp_path: Path) -> None:
    for number in range(4):
        add(log, f"{number}-", 20, "text", days=400)
    assert maintain(LogSettings(), tmp_path, tmp_path / "spool", 0, NOW).dropped == 0
    maintain(LogSettings(), tmp_path, tmp_path / "spool", 0, LATER)
    files, snapshot = parquet(tmp_path), log.snapshot()
    assert len(files) == 1
    assert maintain(LogSettings(), tmp_path, tmp_path / "spool", 0, LATER).files == 0
    assert (parquet(tmp_path), log.snapshot()) == (files, snapshot)
    assert log.query("SELECT count(DISTINCT id) FROM exchanges") == [(80,)]


def test_it_gives_way_to_another(tmp_path: Path) -> None:
    with maintaining(tmp_path, 0), pytest.raises(Unavailable, match="under way"):
        maintain(LogSettings(), tmp_path, tmp_path / "spool", 90, NOW)


def test_killed_anywhere_it_loses_and_doubles_nothing_and_is_finished_later(log: Log, tmp_path: Path) -> None:
    wanted = set()
    killed = 0
    for statement in range(1, 31, 3):
        name = f"{statement}-"
        for part in range(3):
            add(log, f"{name}{part}-", 12, "stays")
            add(log, f"{name}{part}-", 12, "~canary", days=5)
            wanted |= {f"{name}{part}-{row}" for row in range(12)}
        arguments = [str(tmp_path), str(statement), str(0.02 * (statement % 3)), NOW.isoformat()]
        ended = subprocess.run([sys.executable, "-c", KILLED, *arguments])
        killed += ended.returncode == -9
        found = log.query("SELECT id FROM exchanges WHERE request = 'stays'")
        assert len(found) == len(wanted)
        assert {row[0] for row in found} == wanted
        rows = "SELECT count(path) FROM exchanges"  # A kill may leave a placeholder, which has none.
        assert log.query(f"SELECT ({rows}) + coalesce(sum(exchanges), 0) FROM carried") == [(2 * len(wanted),)]
    assert killed >= 5
    maintain(LogSettings(), tmp_path, tmp_path / "spool", 2, NOW)
    maintain(LogSettings(), tmp_path, tmp_path / "spool", 5, LATER)
    assert holding(tmp_path, "~canary") == set()
    assert {row[0] for row in log.query("SELECT id FROM exchanges")} == wanted
    known = {Path(row[0]) for row in log.query("SELECT data_file FROM ducklake_list_files('lake', 'exchanges')")}
    assert set(parquet(tmp_path)) == known
