import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.backup import back_up, backups
from proxy.errors import Refused, Unavailable
from proxy.exchange import Exchange
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log, open_log
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.repair import working_log
from proxy.settings import LogSettings
from proxy.spool import SpoolWriter
from tests.logs import migrated

ASK = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'
ANSWER = b'{"model": "gpt-4o", "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}'
DIES = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("INSERT INTO ducklake_metadata (key, value) VALUES ('note', 'in the wal')")
connection.commit()
os.kill(os.getpid(), 9)
"""


def a_dollar(model: str | None, prompt: int | None, cached: int | None, completion: int | None) -> float:
    return 1.0


class Home:
    """A home with a log, as the controller uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spool = folder, folder / "spool"
        self.catalog = folder / "log" / "catalog.sqlite"
        self.expected: list[str] = []
        migrated(folder).close()

    def open(self) -> Log:
        return working_log(LogSettings(), self.folder, self.spool)

    def record(self, number: int) -> None:
        """One segment; from ten rows on DuckLake writes Parquet, fewer stay in the catalog."""
        writer, redactor = SpoolWriter(self.spool, 1 << 30, 3600), Redactor(SECRETS_ONLY)
        for _ in range(number):
            fields = {"path": "/v1/chat/completions", "request": ASK, "response": ANSWER, "status": 200}
            exchange = Exchange(id=ulid(), ts=1_800_000_000.0, method="POST", **fields)  # type: ignore[arg-type]
            self.expected.append(exchange.id)
            writer.append(exchange.line(redactor))
        writer.rotate()

    def ingest(self, log: Log) -> None:
        Ingest(log, self.spool, 7, a_dollar).run()

    def used(self) -> None:
        """A day's work: a backup in the middle, then more."""
        log = self.open()
        self.record(20)
        self.record(3)
        self.ingest(log)
        log.query("INSERT INTO transitions BY NAME SELECT 'before' AS id, 'live' AS stage_to")
        log.close()
        back_up(self.catalog)
        log = self.open()
        self.record(15)
        self.record(2)
        self.ingest(log)
        log.query("INSERT INTO transitions BY NAME SELECT 'after' AS id")
        log.close()

    def holds(self, transitions: list[str]) -> None:
        """Opening repairs; then every exchange and its cost is there once."""
        log = self.open()
        self.ingest(log)
        assert [id for (id,) in log.query("SELECT id FROM exchanges ORDER BY id")] == self.expected
        assert [id for (id,) in log.query("SELECT exchange FROM spend ORDER BY exchange")] == self.expected
        assert [id for (id,) in log.query("SELECT id FROM transitions ORDER BY id DESC")] == transitions
        log.close()
        again = self.open()
        assert Ingest(again, self.spool, 7, a_dollar).run() == 0
        again.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.used()
    return made


def truncated(catalog: Path) -> None:
    os.truncate(catalog, catalog.stat().st_size // 2 + 100)


def header_overwritten(catalog: Path) -> None:
    with catalog.open("r+b") as file:
        file.write(b"no database " * 20)


def garbage_pages(catalog: Path) -> None:
    with catalog.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(4096 * 12))


def emptied(catalog: Path) -> None:
    os.truncate(catalog, 0)


def zeros(catalog: Path) -> None:
    catalog.write_bytes(b"\0" * catalog.stat().st_size)


def half_a_table(catalog: Path) -> None:
    with sqlite3.connect(catalog) as connection:
        connection.execute("DELETE FROM ducklake_snapshot")
    connection.close()


DAMAGE = [truncated, header_overwritten, garbage_pages, emptied, zeros, half_a_table, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_sound_backup_and_the_spool_make_the_log_whole(
    home: Home, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(home.catalog)
    before = home.catalog.read_bytes() if home.catalog.exists() else None
    home.holds(["before"])
    (said,) = [record.getMessage() for record in caplog.records if "took its place" in record.getMessage()]
    assert "transitions and costs of serving since then are lost" in said
    aside = list((home.folder / "log").glob("damaged-*/catalog.sqlite"))
    assert [path.read_bytes() for path in aside] == ([before] if before is not None else [])


def test_without_a_sound_backup_the_spool_makes_what_it_can(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    for backup in backups(home.catalog):
        truncated(backup)
    garbage_pages(home.catalog)
    home.holds([])
    assert "no backup is sound, so a new log begins" in caplog.text


def test_a_sound_log_is_opened_without_a_word(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.holds(["before", "after"])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not list((home.folder / "log").glob("damaged-*"))


def test_a_log_that_never_was_is_made_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Home(tmp_path).holds([])
    assert caplog.text == ""


def test_what_a_killed_writer_left_in_the_wal_is_kept(home: Home) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(home.catalog)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert home.catalog.with_name("catalog.sqlite-wal").stat().st_size
    home.holds(["before", "after"])
    with contextlib.closing(sqlite3.connect(home.catalog)) as connection:
        found = connection.execute("SELECT value FROM ducklake_metadata WHERE key = 'note'").fetchall()
    assert found == [("in the wal",)]


def test_a_wal_of_another_catalog_does_not_reach_the_backup(home: Home) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(home.catalog)], capture_output=True)
    header_overwritten(home.catalog)
    home.holds(["before"])


@pytest.mark.parametrize("table", ["exchanges", "spend"])
def test_missing_parquet_files_are_taken_out_and_their_segments_enter_again(
    home: Home, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = list((home.folder / "log" / "data" / "main" / table).rglob("*.parquet"))
    assert files
    files[0].unlink()
    with pytest.raises(Unavailable, match="the log is damaged: start `stillroom serve` again"):
        open_log(LogSettings(), home.folder).query(f"SELECT * FROM {table}")
    home.holds(["before", "after"])
    assert f"1 Parquet files of the log are missing and were taken out of its tables {table}" in caplog.text


def test_all_parquet_files_may_be_missing(home: Home) -> None:
    shutil.rmtree(home.folder / "log" / "data")
    home.holds(["before", "after"])


def test_retained_segments_of_a_deleted_log_enter_again(home: Home) -> None:
    shutil.rmtree(home.folder / "log")
    home.holds([])


def test_a_database_of_something_else_is_not_touched(home: Home) -> None:
    home.catalog.unlink()
    with sqlite3.connect(home.catalog) as connection:
        connection.execute("CREATE TABLE mine (number INTEGER)")
    connection.close()
    before = home.catalog.read_bytes()
    with pytest.raises(Unavailable, match="database of something else"):
        home.open()
    assert home.catalog.read_bytes() == before


def test_what_cannot_be_looked_at_is_not_called_damaged(home: Home) -> None:
    home.catalog.rename(home.folder / "elsewhere")
    home.catalog.mkdir()
    (home.catalog / "file").touch()
    with pytest.raises(Unavailable, match="cannot be looked at: unable to open"):
        home.open()
    assert not list((home.folder / "log").glob("damaged-*"))


def test_a_newer_log_is_refused_and_left_as_it_is(home: Home) -> None:
    log = home.open()
    log.query("INSERT INTO migrations VALUES (999, now())")
    log.close()
    with pytest.raises(Refused, match="update Stillroom"):
        home.open()
    assert not list((home.folder / "log").glob("damaged-*"))
