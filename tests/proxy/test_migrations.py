import subprocess
import sys
from pathlib import Path

import pytest

from proxy.errors import Refused
from proxy.log import Log, open_log
from proxy.migrations import MIGRATIONS, migrate, version
from proxy.settings import LogSettings

MIGRATE = """
import sys
from pathlib import Path
from proxy.log import open_log
from proxy.migrations import migrate
from proxy.settings import LogSettings
log = open_log(LogSettings(), Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(migrate(log), flush=True)
"""
TABLES = {
    "candidates", "carried", "exchanges", "freezes", "judges", "migrations", "rationales", "repeats", "segments",
    "spend", "transitions", "verdicts",
}  # fmt: skip


def tables(log: Log) -> set[str]:
    return {name for (name,) in log.query("SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake'")}


def test_from_nothing_and_again_it_comes_to_the_newest(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    assert migrate(log) == version(log) == len(MIGRATIONS)
    assert tables(log) == TABLES
    log.query("INSERT INTO segments VALUES ('a', 1, now())")
    before = log.snapshot()
    assert migrate(log) == len(MIGRATIONS)
    assert log.query("SELECT name FROM segments") == [("a",)]
    assert log.query("SELECT number FROM migrations ORDER BY number") == [(n + 1,) for n in range(len(MIGRATIONS))]
    assert log.snapshot() == before


def test_a_log_of_the_first_version_keeps_its_rows_and_gets_tenants(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    log.query("CREATE TABLE migrations (number INTEGER, ts TIMESTAMPTZ)")
    log.transaction(MIGRATIONS[0])
    log.query("INSERT INTO migrations VALUES (1, now())")
    log.query("INSERT INTO exchanges BY NAME SELECT range::VARCHAR AS id, now() AS ts FROM range(3)")
    assert migrate(log) == len(MIGRATIONS)
    log.query("INSERT INTO exchanges BY NAME SELECT '3' AS id, now() AS ts, 'team' AS tenant")
    log.query("INSERT INTO exchanges BY NAME SELECT '4' AS id, now() AS ts, '\\xFF\\x00'::BLOB AS logprobs")
    assert log.query("SELECT id, logprobs FROM exchanges WHERE logprobs IS NOT NULL") == [("4", b"\xff\0")]
    log.query("DELETE FROM exchanges WHERE id = '4'")
    assert log.query("SELECT DISTINCT answered_model, teacher, lang FROM exchanges") == [(None, None, None)]
    assert log.query("SELECT id, tenant FROM exchanges ORDER BY id") == [
        ("0", None),
        ("1", None),
        ("2", None),
        ("3", "team"),
    ]


def test_charges_of_before_learn_their_path_and_again_nothing_changes(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    log.query("CREATE TABLE migrations (number INTEGER, ts TIMESTAMPTZ)")
    for number, migration in enumerate(MIGRATIONS[:2], 1):
        log.transaction(migration)
        log.query("INSERT INTO migrations VALUES (?, now())", [number])
    for first, rows in ((0, 3), (3, 20)):  # Inside the catalog, and in a file.
        named = f"SELECT (range + {first})::VARCHAR AS id, now() AS ts, '/v1/embeddings' AS path FROM range({rows})"
        log.query(f"INSERT INTO exchanges BY NAME {named}")
        log.query(f"INSERT INTO spend BY NAME SELECT id, id AS exchange, 'teacher' AS kind, 2.5 AS usd FROM ({named})")
    log.query("INSERT INTO spend VALUES ('x', now(), 'task', 'teacher', NULL, 'gone', 1.0, 1.0, 'exchange')")
    log.query("INSERT INTO spend VALUES ('y', now(), 'task', 'audit', NULL, '1', 1.0, 1.0, 'exchange')")
    wanted = [("/v1/embeddings", 23, 57.5), (None, 2, 2.0)]
    assert migrate(log) == len(MIGRATIONS)
    for _ in range(2):
        assert log.query("SELECT path, count(*), sum(usd) FROM spend GROUP BY path ORDER BY path") == wanted
        log.transaction(MIGRATIONS[2])


def test_emptying_the_catalog_later_blinds_no_open_connection(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    migrate(log)
    log.query("INSERT INTO exchanges BY NAME SELECT '1' AS id, now() AS ts")
    open_log(LogSettings(), tmp_path).query("CALL ducklake_flush_inlined_data('lake')")
    log.query("INSERT INTO exchanges BY NAME SELECT '2' AS id, now() AS ts")
    assert log.query("SELECT id FROM exchanges ORDER BY id") == [("1",), ("2",)]


def test_who_had_the_log_open_before_a_migration_still_reads_it(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    log.query("CREATE TABLE migrations (number INTEGER, ts TIMESTAMPTZ)")
    log.transaction(MIGRATIONS[0])
    log.query("INSERT INTO migrations VALUES (1, now())")
    log.query("INSERT INTO exchanges BY NAME SELECT '1' AS id, now() AS ts")
    migrate(open_log(LogSettings(), tmp_path))
    assert log.query("SELECT id, tenant FROM exchanges") == [("1", None)]


def test_two_at_once_apply_each_migration_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MIGRATE, str(tmp_path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in both] == [f"{len(MIGRATIONS)}\n"] * 2
    log = open_log(LogSettings(), tmp_path)
    assert tables(log) == TABLES
    assert log.query("SELECT number FROM migrations ORDER BY number") == [(n + 1,) for n in range(len(MIGRATIONS))]


def test_a_newer_log_is_refused(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    newer = migrate(log) + 1
    log.query("INSERT INTO migrations VALUES (?, now())", [newer])
    with pytest.raises(Refused, match=rf"the log is at version {newer}, .*: update Stillroom"):
        migrate(log)


def test_exchanges_are_partitioned_by_day(tmp_path: Path) -> None:
    log = open_log(LogSettings(), tmp_path)
    migrate(log)
    for day in (1, 2):
        log.query(
            "INSERT INTO exchanges BY NAME SELECT range::VARCHAR AS id, ?::TIMESTAMPTZ AS ts FROM range(2000)",
            [f"2026-03-0{day} 12:00:00+00"],
        )
    folders = {path.parent.name for path in (tmp_path / "log" / "data" / "main" / "exchanges").rglob("*.parquet")}
    assert folders == {"day=1", "day=2"}
