import contextlib
import threading
from pathlib import Path

import duckdb
import pytest

from distiller.dashboard.reading import CONNECTIONS, Readers
from distiller.settings import Settings
from proxy.errors import BadInput, Unavailable
from proxy.log import Log
from router.searching import confined
from tests.logs import migrated


def count(log: Log) -> int:
    return int(log.query("SELECT count(*) FROM segments")[0][0])


def test_an_answer_is_kept_until_the_log_changes(tmp_path: Path) -> None:
    log, asked = migrated(tmp_path), []
    readers = Readers(Settings(home=str(tmp_path)))

    def counted(reading: Log) -> int:
        asked.append(1)
        return count(reading)

    assert [readers.now("n", counted), readers.now("n", counted)] == [0, 0]
    assert len(asked) == 1
    log.query("INSERT INTO segments VALUES ('a', 1, now())")
    assert readers.now("n", counted) == 1
    assert readers.now("another", lambda _: "kept apart") == "kept apart"
    assert len(asked) == 2
    readers.close()
    log.close()


def test_what_takes_long_may_be_kept_for_a_while_but_not_beyond_what_was_done_here(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    readers = Readers(Settings(home=str(tmp_path)))
    assert readers.now("n", count, 1000.0) == 0
    log.query("INSERT INTO segments VALUES ('a', 1, now())")
    assert readers.now("n", count, 1000.0) == 0
    readers.forget()
    assert readers.now("n", count, 1000.0) == 1
    readers.close()
    log.close()


def test_many_who_ask_at_once_have_it_read_once(tmp_path: Path) -> None:
    log, asked, found = migrated(tmp_path), [], []
    readers = Readers(Settings(home=str(tmp_path)))

    def counted(reading: Log) -> int:
        asked.append(1)
        return count(reading)

    threads = [threading.Thread(target=lambda: found.append(readers.now("n", counted))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(asked)) == ([0] * 12, 1)
    readers.close()
    log.close()


def test_nothing_can_be_written(tmp_path: Path) -> None:
    migrated(tmp_path).close()
    readers = Readers(Settings(home=str(tmp_path)))
    with pytest.raises(duckdb.Error, match="read-only"), readers.log() as log:
        log.query("INSERT INTO segments VALUES ('a', 1, now())")
    readers.close()


def test_without_a_log_it_says_so_and_later_reads_it(tmp_path: Path) -> None:
    readers = Readers(Settings(home=str(tmp_path)))
    for _ in range(CONNECTIONS + 1):
        with pytest.raises(Unavailable, match="there is no log"):
            readers.now("n", count)
    migrated(tmp_path).close()
    assert readers.now("n", count) == 0
    readers.close()


def test_a_connection_outlives_what_a_page_refuses_and_not_what_it_breaks(tmp_path: Path) -> None:
    migrated(tmp_path).close()
    readers = Readers(Settings(home=str(tmp_path)))
    seen: list[Log] = []

    def use(sql: str) -> None:
        with readers.log() as log:
            seen.append(log)
            log.query(sql)
            raise BadInput("no such task")

    for sql, error in (("SELECT 1", BadInput), ("SELECT nonsense", duckdb.Error), ("SELECT 1", BadInput)):
        with pytest.raises(error):
            use(sql)
    assert seen[0] is seen[1]
    assert seen[2] is not seen[0]
    readers.close()


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distiller.dashboard.reading._MOST_KEPT", 3)
    migrated(tmp_path).close()
    readers = Readers(Settings(home=str(tmp_path)))
    for number in range(10):
        assert readers.now(number, lambda _, number=number: number) == number
    assert list(readers._kept) == list(readers._turns) == [7, 8, 9]
    readers.close()


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    migrated(tmp_path).close()
    readers = Readers(Settings(home=str(tmp_path)))

    def fails(_: Log) -> int:
        raise BadInput("no such task")

    for number in range(10):
        with pytest.raises(BadInput):
            readers.now(number, fails)
    assert readers._turns == {}
    readers.close()


def test_what_was_read_before_a_deed_ended_is_not_kept(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    readers = Readers(Settings(home=str(tmp_path)))

    def overtaken(reading: Log) -> int:
        found = count(reading)
        log.query("INSERT INTO segments VALUES ('a', 1, now())")
        readers.forget()
        return found

    assert readers.now("n", overtaken, 1000.0) == 0
    assert readers.now("n", count, 1000.0) == 1
    readers.close()
    log.close()


def test_who_would_wait_too_long_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distiller.dashboard.reading.WAIT_SECONDS", 0.01)
    migrated(tmp_path).close()
    readers = Readers(Settings(home=str(tmp_path)))

    def asks(_: Log) -> int:
        return readers.now("n", count)  # Its own turn has not come.

    with pytest.raises(Unavailable, match="too many pages"):
        readers.now("n", asks)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(readers.log())
        with pytest.raises(Unavailable, match="too many pages"):
            stack.enter_context(readers.log())
    assert readers.now("n", count) == 0
    readers.close()


def test_what_takes_long_is_kept_by_a_mark_of_its_own(tmp_path: Path) -> None:
    log, asked, mark = migrated(tmp_path), [], ["first"]
    readers = Readers(Settings(home=str(tmp_path)))

    def counted(reading: Log) -> int:
        asked.append(1)
        return count(reading)

    assert readers.now("n", counted, mark=lambda _: mark[0]) == 0
    log.query("INSERT INTO segments VALUES ('a', 1, now())")
    assert readers.now("n", counted, mark=lambda _: mark[0]) == 0
    mark[0] = "second"
    assert readers.now("n", counted, mark=lambda _: mark[0]) == 1
    assert len(asked) == 2
    readers.close()
    log.close()


def test_connections_may_be_opened_otherwise(tmp_path: Path) -> None:
    migrated(tmp_path).close()
    readers = Readers(Settings(home=str(tmp_path)), lambda settings: confined(settings.log, settings.folder))
    with readers.log() as reading, pytest.raises(duckdb.Error):
        reading.query("SET threads = 8")
    with readers.log() as reading:
        assert count(reading) == 0
    readers.close()
