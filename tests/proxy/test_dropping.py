from datetime import date
from pathlib import Path

import duckdb
import pytest

from proxy.dropping import drop
from proxy.log import Log
from tests.logs import migrated

CHAT = "/v1/chat/completions"
COLUMNS = "day, task, model, served_by, exchanges, fallbacks, prompt_tokens, cached_tokens, completion_tokens"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = migrated(tmp_path)
    columns = (
        "id, ts, task, model, path, served_by, fallback, prompt_tokens, cached_tokens, completion_tokens, usage_source"
    )
    rows = [
        ("a", "2026-03-01 23:30:00+00", "t", "m", CHAT, "teacher", None, 10, 4, 2, "provider"),
        ("b", "2026-03-02 05:00:00+05:30", "t", "m", CHAT, "teacher", "unsure", 5, None, 1, "estimated"),
        ("c", "2026-03-01 12:00:00+00", "t", "m", CHAT, "student-1", None, None, None, None, None),
        ("d", "2026-03-02 12:00:00+00", None, None, "/v1/embeddings", "teacher", None, 7, None, 0, "provider"),
        ("e", "2026-03-02 12:00:00+00", None, None, "/v1/files/mine", "teacher", None, None, None, None, None),
        ("f", "2026-03-02 12:00:00+00", "t", "m", CHAT, "teacher", None, 1, 1, 1, "provider"),
    ]
    for row in rows:
        log.query(f"INSERT INTO exchanges ({columns}) VALUES ({', '.join('?' * len(row))})", row)
    return log


def test_what_was_dropped_is_counted_by_day_task_model_and_who_served(log: Log) -> None:
    assert log.transaction(lambda c: drop(c, "id < $last", {"last": "f"})) == 5
    assert log.query(f"SELECT {COLUMNS}, estimated, uncounted FROM carried ORDER BY day, served_by") == [
        (date(2026, 3, 1), "t", "m", "student-1", 1, 0, 0, 0, 0, 0, 1),
        (date(2026, 3, 1), "t", "m", "teacher", 2, 1, 15, 4, 3, 1, 0),
        (date(2026, 3, 2), None, None, "teacher", 1, 0, 7, 0, 0, 0, 0),
    ]
    assert log.query("SELECT id FROM exchanges") == [("f",)]


def test_what_was_asked_about_them_goes_too(log: Log) -> None:
    log.query("INSERT INTO rationales (exchange, text) VALUES ('a', 'why'), ('f', 'why not')")
    log.query("INSERT INTO repeats (exchange, answer) VALUES ('a', 'again'), ('f', 'not again')")
    log.transaction(lambda c: drop(c, "id < $last", {"last": "f"}))
    assert log.query("SELECT exchange FROM rationales") == log.query("SELECT exchange FROM repeats") == [("f",)]


def test_again_it_counts_nothing(log: Log) -> None:
    for dropped in (5, 0):
        assert log.transaction(lambda c: drop(c, "id < $last", {"last": "f"})) == dropped
    assert log.query("SELECT sum(exchanges) FROM carried") == [(4,)]


def test_what_is_not_committed_is_neither_dropped_nor_counted(log: Log) -> None:
    def work(connection: duckdb.DuckDBPyConnection) -> None:
        drop(connection, "true", {})
        raise KeyError

    with pytest.raises(KeyError):
        log.transaction(work)
    assert log.query("SELECT (SELECT count(*) FROM exchanges), (SELECT count(*) FROM carried)") == [(6, 0)]
