import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from proxy.backup import back_up, backups
from proxy.errors import Unavailable
from proxy.freeing import deleting, maintaining, merge, release, rewrite, vacuum
from proxy.log import Log
from proxy.settings import LogSettings
from tests.logs import migrated
from tests.servers import eventually

HOLDER = """
import sys
from pathlib import Path
from proxy.freeing import maintaining
with maintaining(Path(sys.argv[1]), 0):
    print("held", flush=True)
    sys.stdin.readline()
"""
WRITER = """
import sys
from pathlib import Path
from proxy.log import open_log
from proxy.settings import LogSettings
log = open_log(LogSettings(), Path(sys.argv[1]))
sql = "INSERT INTO exchanges (id, ts, latency_ms) SELECT 'w' || ? || '-' || range, now(), 1.5 FROM range(?)"
print("ready", flush=True)
for number in range(15):
    log.transaction(lambda c: c.execute(sql, [number, 3 if number % 2 else 30]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    return log


def add(log: Log, name: str, rows: int, text: str, days: int = 0) -> None:
    ts = datetime.now(UTC) - timedelta(days=days)
    log.query(
        "INSERT INTO exchanges BY NAME SELECT ? || range AS id, ?::TIMESTAMPTZ AS ts, ? AS request, "
        "'/v1/chat/completions' AS path FROM range(?)",
        [name, ts, text, rows],
    )


def parquet(home: Path) -> list[Path]:
    return sorted((home / "log" / "data" / "main" / "exchanges").rglob("*.parquet"))


def holding(home: Path, text: str) -> set[str]:
    """Files with the text in them, looked into as Parquet too, which may be compressed."""
    raw = {path.name for path in home.rglob("*") if path.is_file() and text.encode() in path.read_bytes()}
    sql = "SELECT count(*) FROM read_parquet(?) t WHERE CAST(t AS VARCHAR) LIKE ?"
    inside = {
        path.name
        for path in home.rglob("*.parquet")
        if duckdb.execute(sql, [str(path), f"%{text}%"]).fetchall() != [(0,)]
    }
    return raw | inside


# Rows inside the catalog, part of a file, and a file of which nothing is left.
@pytest.mark.parametrize(("gone", "kept"), [(3, 3), (60, 60), (60, 0)])
def test_deleted_rows_are_on_no_disk_and_others_stay(log: Log, tmp_path: Path, gone: int, kept: int) -> None:
    add(log, "other", 40, "stays", days=1)
    log.query(
        "INSERT INTO exchanges BY NAME SELECT 'id' || range AS id, now() AS ts, "
        "CASE WHEN range < ? THEN '~canary' ELSE 'stays' END AS request FROM range(?)",
        [gone, gone + kept],
    )
    back_up(tmp_path / "log" / "catalog.sqlite")
    assert holding(tmp_path, "~canary")
    with deleting(LogSettings(), tmp_path) as own:
        own.query("DELETE FROM exchanges WHERE request = '~canary'")
        rewrite(own)
        now = datetime.now(UTC)
        assert release(own, now, now) > 0
    assert vacuum(LogSettings(), tmp_path) == tmp_path / "log" / "catalog.sqlite"
    assert len(backups(tmp_path / "log" / "catalog.sqlite")) == 1
    assert holding(tmp_path, "~canary") == set()
    assert log.query("SELECT count(*), count(DISTINCT id), min(request) FROM exchanges") == [
        (40 + kept,) * 2 + ("stays",)
    ]


def test_small_files_become_few_and_snapshots_still_read(log: Log, tmp_path: Path) -> None:
    for number in range(6):
        add(log, f"{number}-", 20, "text")
    then, before = log.snapshot(), len(parquet(tmp_path))
    add(log, "late", 20, "text")
    with deleting(LogSettings(), tmp_path) as own:
        merge(own)
        assert log.query(f"SELECT count(*) FROM exchanges AT (VERSION => {then})") == [(120,)]
        now = datetime.now(UTC)
        release(own, now, now)
    assert (before, len(parquet(tmp_path))) == (6, 1)
    assert log.query("SELECT count(DISTINCT id) FROM exchanges") == [(140,)]


def test_what_is_younger_than_the_limit_is_spared(log: Log, tmp_path: Path) -> None:
    add(log, "a", 20, "text")
    then = log.snapshot()
    log.query("DELETE FROM exchanges")
    with deleting(LogSettings(), tmp_path) as own:
        now = datetime.now(UTC)
        assert release(own, now - timedelta(hours=1), now) == 0
    assert log.query(f"SELECT count(*) FROM exchanges AT (VERSION => {then})") == [(20,)]


def test_an_old_file_that_no_snapshot_knows_goes_and_a_fresh_one_may_be_in_use(log: Log, tmp_path: Path) -> None:
    add(log, "a", 20, "text")
    (file,) = parquet(tmp_path)
    orphan = file.with_name("ducklake-orphan.parquet")
    orphan.write_bytes(file.read_bytes())
    now = datetime.now(UTC)
    with deleting(LogSettings(), tmp_path) as own:
        assert release(own, now - timedelta(days=1), now) == 0
        assert release(own, now - timedelta(days=1), now + timedelta(hours=2)) == 1
    assert parquet(tmp_path) == [file]
    assert log.query("SELECT count(*) FROM exchanges") == [(20,)]


def test_a_writer_loses_nothing_meanwhile(log: Log, tmp_path: Path) -> None:
    add(log, "gone", 100, "~canary")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with deleting(LogSettings(), tmp_path) as own:
            while writer.poll() is None:
                own.query("DELETE FROM exchanges WHERE id LIKE '%-1'")
                rewrite(own)
                merge(own)
                now = datetime.now(UTC)
                release(own, now, now)
                vacuum(LogSettings(), tmp_path)
            own.query("DELETE FROM exchanges WHERE id LIKE '%-1'")
        assert writer.returncode == 0
    found = log.query("SELECT id FROM exchanges WHERE id LIKE 'w%' ORDER BY id")
    wanted = sorted(f"w{n}-{row}" for n in range(15) for row in range(3 if n % 2 else 30) if row != 1)
    assert [row[0] for row in found] == wanted


def test_one_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match="is under way"), maintaining(tmp_path, 0.3):
            pass
        holder.kill()  # The kernel frees the lock.
    with maintaining(tmp_path, 0):
        pass


def test_the_catalog_is_vacuumed_once_nobody_reads(log: Log, tmp_path: Path) -> None:
    wal = tmp_path / "log" / "catalog.sqlite-wal"
    add(log, "a", 3, "text")
    log.query("BEGIN")
    log.query("SELECT count(*) FROM exchanges")
    with ThreadPoolExecutor() as pool:
        other = pool.submit(vacuum, LogSettings(), tmp_path)
        eventually(lambda: wal.exists() and wal.stat().st_size)  # It waits for the reader.
        log.query("ROLLBACK")
        assert other.result()
    assert not wal.exists() or not wal.stat().st_size
    assert log.query("SELECT count(*) FROM exchanges") == [(3,)]


def test_another_databases_catalog_is_left_to_it_and_a_bad_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vacuum(LogSettings(catalog="postgres:dbname=x"), tmp_path) is None
    monkeypatch.setattr("proxy.freeing._PATIENCE", 0.1)
    with pytest.raises(Unavailable, match="try again later"):
        vacuum(LogSettings(catalog=f"sqlite:{tmp_path / 'no' / 'folder'}"), tmp_path)
