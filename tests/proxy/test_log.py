import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from proxy.errors import BadInput, Unavailable
from proxy.log import Latest, Log, open_log
from proxy.settings import LogSettings

READER = """
import sys
from pathlib import Path
from proxy.log import open_log
from proxy.settings import LogSettings
log = open_log(LogSettings(), Path(sys.argv[1]), read_only=True)
for _ in sys.stdin:
    print(log.query("SELECT count(*) FROM numbers")[0][0], flush=True)
"""
WRITER = """
import sys
from pathlib import Path
from proxy.log import open_log
from proxy.settings import LogSettings
log = open_log(LogSettings(), Path(sys.argv[1]))
for number in range(15):
    log.transaction(lambda c: c.execute("INSERT INTO numbers VALUES (?, ?)", [int(sys.argv[2]), number]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = open_log(LogSettings(), tmp_path)
    log.query("CREATE TABLE numbers (writer INTEGER, number INTEGER)")
    return log


def add(log: Log, number: int) -> None:
    log.transaction(lambda connection: connection.execute("INSERT INTO numbers VALUES (0, ?)", [number]))


def test_another_process_reads_while_one_writes(log: Log, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        seen = []
        for number in range(3):
            add(log, number)
            reader.stdin.write("\n")
            reader.stdin.flush()
            seen.append(int(reader.stdout.readline()))
        reader.stdin.close()
    assert seen == [1, 2, 3]


def test_several_writers_lose_nothing_and_double_nothing(log: Log, tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert log.query("SELECT * FROM numbers ORDER BY ALL") == [(w, n) for w in range(3) for n in range(15)]


def test_a_transaction_is_whole_or_not_at_all(log: Log) -> None:
    def half(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("INSERT INTO numbers VALUES (0, 0)")
        raise BadInput("stop here")

    with pytest.raises(BadInput, match="stop here"):
        log.transaction(half)
    add(log, 1)
    assert log.query("SELECT number FROM numbers") == [(1,)]


def test_a_lost_race_is_run_again_and_another_error_is_not(log: Log) -> None:
    runs: list[str] = []

    def losing(connection: duckdb.DuckDBPyConnection) -> str:
        connection.execute("INSERT INTO numbers VALUES (0, 0)")
        runs.append("lost")
        if len(runs) < 3:
            raise duckdb.TransactionException("Failed to commit: Transaction conflict")
        return "won"

    def failing(connection: duckdb.DuckDBPyConnection) -> None:
        runs.append("failed")
        raise duckdb.IOException("no space left on device")

    assert log.transaction(losing) == "won"
    with pytest.raises(duckdb.IOException, match="no space"):
        log.transaction(failing)
    assert runs == ["lost"] * 3 + ["failed"]
    assert log.query("SELECT count(*) FROM numbers") == [(1,)]


def test_what_is_made_of_a_log_is_read_again_only_when_it_changed(log: Log) -> None:
    log.query("CREATE TABLE t (n INTEGER)")
    reads: list[int] = []

    def read() -> int:
        reads.append(1)
        return int(log.query("SELECT count(*) FROM t")[0][0])

    latest = Latest(log, read)
    assert (latest.now(), latest.now(), len(reads)) == (0, 0, 1)
    log.query("INSERT INTO t VALUES (1)")
    assert (latest.now(), latest.now(), len(reads)) == (1, 1, 2)


def test_every_commit_is_a_snapshot_to_return_to(log: Log) -> None:
    add(log, 1)
    then = log.snapshot()
    add(log, 2)
    assert log.snapshot() > then
    assert log.query(f"SELECT number FROM numbers AT (VERSION => {then})") == [(1,)]


def test_who_only_reads_cannot_write(log: Log, tmp_path: Path) -> None:
    add(log, 7)
    reader = open_log(LogSettings(), tmp_path, read_only=True)
    assert reader.table("SELECT number AS n, 'x' AS word FROM numbers") == (["n", "word"], [(7, "x")])
    with pytest.raises(BadInput, match=r"INSERT.* read-only mode"):
        reader.table("INSERT INTO numbers VALUES (0, 0)")
    with pytest.raises(duckdb.InvalidInputException, match="read-only mode"):
        add(reader, 0)
    reader.close()
    assert log.query("SELECT count(*) FROM numbers") == [(1,)]


@pytest.mark.parametrize("sql", ["selekt", "SELECT\n*\nFROM\nnothing", "SELECT 1/", "SELECT missing FROM numbers"])
def test_bad_sql_is_one_line(log: Log, sql: str) -> None:
    with pytest.raises(BadInput, match=r"^the query failed: ") as raised:
        log.table(sql)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sql", ["", " ;", "-- only a comment"])
def test_no_statement_is_asked_for(log: Log, sql: str) -> None:
    with pytest.raises(BadInput, match="the query is empty: write one SQL statement"):
        log.table(sql)


def test_a_missing_log_says_what_to_do_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="start `stillroom serve` first"):
        open_log(LogSettings(), tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must start with sqlite: or postgres:, not 'mysql:x'"):
        open_log(LogSettings(catalog="mysql:x"), tmp_path)


def test_a_catalog_that_is_none_and_a_folder_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database\n" * 100)
    with pytest.raises(Unavailable, match="cannot be opened"):
        open_log(LogSettings(catalog=f"sqlite:{tmp_path / 'file'}"), tmp_path)
    with pytest.raises(Unavailable, match="cannot be made"):
        open_log(LogSettings(catalog=f"sqlite:{tmp_path / 'file' / 'catalog.sqlite'}"), tmp_path)


def test_catalog_and_data_lie_where_the_settings_say(tmp_path: Path) -> None:
    places = LogSettings(f"sqlite:{tmp_path / 'one.sqlite'}", str(tmp_path / "it's here"))
    log = open_log(places, tmp_path / "home")
    log.query("CREATE TABLE numbers AS SELECT range AS n FROM range(5000)")
    assert {path.name for path in tmp_path.iterdir() if "sqlite-" not in path.name} == {"one.sqlite", "it's here"}
    assert list((tmp_path / "it's here").rglob("*.parquet"))
