import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.counters import BUCKETS
from proxy.derive import PAID
from proxy.dropping import drop
from proxy.freeing import deleting, merge, release, rewrite
from proxy.log import Log, open_log
from proxy.rollups import BOUNDS_MS, Folding, compact, fold, query, rebuild
from proxy.settings import LogSettings
from tests.logs import migrated

START = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)
CHAT = "/v1/chat/completions"
# Adds and folds, beside others that do the same.
FOLDER = """
import sys
from pathlib import Path
from proxy.log import open_log
from proxy.rollups import fold
from proxy.settings import LogSettings
log = open_log(LogSettings(), Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(6):
    rows = "SELECT uuid()::VARCHAR AS id, now() AS ts, 'teacher' AS served_by FROM range(?)"
    log.transaction(lambda c: c.execute("INSERT INTO exchanges BY NAME " + rows, [3 if number % 2 else 30]))
    log.transaction(fold)
"""

exchanges = st.fixed_dictionaries(
    {
        "ts": st.integers(0, 300).map(lambda minutes: START + timedelta(minutes=minutes)),
        "task": st.sampled_from(["a", "b", None]),
        "model": st.sampled_from(["m", None]),
        "path": st.sampled_from([CHAT, "/v1/files/of-somebody", None]),
        "served_by": st.sampled_from(["teacher", "student-1", "stillroom"]),
        "teacher": st.sampled_from([None, "german"]),
        "fallback": st.sampled_from([None, "unsure"]),
        "status": st.sampled_from([0, 200, 404, 429, 500, None]),
        "partial": st.sampled_from([True, False, None]),
        "prompt_tokens": st.sampled_from([None, 0, 7]),
        "cached_tokens": st.sampled_from([None, 3]),
        "completion_tokens": st.sampled_from([None, 2]),
        "usage_source": st.sampled_from([None, "provider", "estimated"]),
        "request_bytes": st.sampled_from([None, 10]),
        "response_bytes": st.sampled_from([None, 20]),
        "latency_ms": st.one_of(st.none(), st.sampled_from([0.0, 10.0, 10.0004, 99.9, 60_000.0, 60_000.1])),
        "first_byte_ms": st.sampled_from([None, 9.9, 1000.0]),
    }
)
spends = st.fixed_dictionaries(
    {
        "ts": st.integers(0, 300).map(lambda minutes: START + timedelta(minutes=minutes)),
        "task": st.sampled_from(["a", None]),
        "kind": st.sampled_from(["teacher", "audit"]),
        "model": st.sampled_from(["m", None]),
        "path": st.sampled_from([CHAT, None]),
        "usd": st.sampled_from([None, 0.1, 0.2, 0.000001, 1234.5, float("nan")]),
        "quantity": st.sampled_from([1.0, 0.25]),
        "unit": st.just("exchange"),
    }
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(exchanges, max_size=12), st.lists(spends, max_size=12)),
        st.sampled_from(
            [("fold",), ("broken fold",), ("compact",), ("rebuild",), ("maintain",), ("erase",), ("placeholders",)]
        ),
        st.tuples(st.just("drop"), st.integers(0, 3)),
        st.tuples(st.just("broken drop"), st.integers(0, 3)),
    ),
    min_size=3,
    max_size=10,
)


class _Broken(Exception):
    pass


class _Model:
    """A log, and in plain Python what its sums must say."""

    def __init__(self, home: Path) -> None:
        self.home, self.log, self.other = home, migrated(home), open_log(LogSettings(), home)
        self.added, self.hours, self.days = 0, Counter[Any](), Counter[Any]()

    def step(self, name: str, *given: Any) -> None:
        if name == "add":
            self._add(*given)
        elif name == "fold":
            self.log.transaction(fold)
        elif name == "broken fold":
            self._broken(fold)
        elif name == "rebuild":
            self.log.transaction(rebuild)
        elif name == "compact":
            compact(self.log)
        elif name == "maintain":
            now = datetime.now(UTC)
            with deleting(LogSettings(), self.home) as log:
                compact(log)
                rewrite(log)
                merge(log)
                release(log, now, now)
        elif name == "erase":
            self.log.query("UPDATE spend SET id = uuid()::VARCHAR, exchange = uuid()::VARCHAR WHERE kind = 'teacher'")
        elif name == "placeholders":  # As `proxy.freeing` leaves them when it is killed.
            for table in ("exchanges", "spend"):
                self.log.query(f"INSERT INTO {table} (id) VALUES (''), ('-')")
        else:
            condition, digit = "CAST(id AS INTEGER) % 4 = $digit", {"digit": given[0]}
            work = lambda c: drop(c, f"id NOT IN ('', '-') AND {condition}", digit)  # noqa: E731
            self._broken(work) if name == "broken drop" else self.log.transaction(work)

    def _broken(self, work: Callable[[duckdb.DuckDBPyConnection], object]) -> None:
        def broken(connection: duckdb.DuckDBPyConnection) -> None:
            work(connection)
            raise _Broken

        with suppress(_Broken):
            self.log.transaction(broken)

    def _add(self, exchanges: list[dict[str, Any]], spends: list[dict[str, Any]]) -> None:
        log = self.other if self.added % 2 else self.log  # The writer is not who folds.
        for table, rows in (("exchanges", exchanges), ("spend", spends)):
            if rows:
                whole = [{"id": str(self.added + number), **row} for number, row in enumerate(rows)]
                self.added += len(rows)
                names = list(whole[0])  # Other rows may name the same in another order.
                marks = ", ".join([f"({', '.join('?' * len(names))})"] * len(whole))
                log.query(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES {marks}",
                    [row[name] for row in whole for name in names],
                )
        for row in exchanges:
            self.hours.update(_counted(row))
        for row in spends:
            self.days.update(_charged(row))


def _counted(row: Mapping[str, Any]) -> Counter[Any]:
    hour = row["ts"].replace(minute=0, tzinfo=None)
    path = row["path"] if row["path"] in PAID else None
    key = (hour, row["task"], row["model"], path, row["served_by"], row["teacher"])
    status = row["status"] or 0
    counts = {
        "exchanges": 1, "fallbacks": row["fallback"] is not None, "partials": row["partial"] is True,
        "errors_4xx": status // 100 == 4, "errors_5xx": status // 100 == 5, "unanswered": row["status"] == 0,
        "estimated": row["usage_source"] == "estimated",
        "uncounted": row["prompt_tokens"] is None or row["completion_tokens"] is None,
        **{name: row[name] or 0 for name in (
            "prompt_tokens", "cached_tokens", "completion_tokens", "request_bytes", "response_bytes")},
    }  # fmt: skip
    for name in ("latency", "first_byte"):
        milliseconds = row[f"{name}_ms"]
        if milliseconds is not None:
            counts[f"{name}_us"] = round(1000 * milliseconds)
            counts[f"{name}_{bisect_left(BUCKETS, milliseconds / 1000)}"] = 1
    return Counter({(*key, name): int(count) for name, count in counts.items() if count})


def _charged(row: Mapping[str, Any]) -> Counter[Any]:
    key = (row["ts"].date(), row["task"], row["kind"], row["model"], row["path"], row["unit"])
    usd = Decimal(0) if row["usd"] is None or row["usd"] != row["usd"] else Decimal(str(row["usd"]))
    unpriced = row["usd"] is None or row["usd"] != row["usd"]
    numbers = {"charges": 1, "unpriced": int(unpriced), "usd": usd, "quantity": Decimal(str(row["quantity"]))}
    return Counter({(*key, name): number for name, number in numbers.items() if number})  # type: ignore[misc]


def _sums(log: Log, table: str, width: int) -> Counter[Any]:
    """Of every key and name, from the rows as `query` gives them."""
    names = [name for (name,) in log.query(f"SELECT column_name FROM (DESCRIBE {table})")]
    found: Counter[Any] = Counter()
    for row in query(log, f"SELECT {', '.join(names)} FROM {'hours' if table == 'exchanges_by_hour' else 'days'}"):
        for name, number in zip(names[width:], row[width:], strict=True):
            if name != "dropped" and number:
                found[(*row[:width], name)] += number
    return Counter({key: number for key, number in found.items() if number})


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_sums_are_what_was_ever_added_whatever_happens_in_whatever_order(steps: list[tuple[Any, ...]]) -> None:
    home = Path(tempfile.mkdtemp())
    try:
        model = _Model(home)
        for step in steps:
            model.step(*step)
        for work in (None, fold, rebuild):  # Read, counted, and counted anew they are the same.
            if work is not None:
                model.log.transaction(work)
            assert _sums(model.log, "exchanges_by_hour", 6) == model.hours
            assert _sums(model.log, "spend_by_day", 6) == model.days
        model.log.close()
        model.other.close()
    finally:
        shutil.rmtree(home)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def add(log: Log, number: int, ts: datetime = START) -> None:
    log.query("INSERT INTO exchanges (id, ts, path, request) VALUES (?, ?, ?, 'secret')", [str(number), ts, CHAT])


def test_buckets_are_those_of_the_metrics() -> None:
    assert tuple(bound / 1000 for bound in BOUNDS_MS) == BUCKETS


def test_a_late_exchange_is_counted_in_its_own_hour(log: Log) -> None:
    add(log, 1)
    log.transaction(fold)
    add(log, 2, START - timedelta(days=1))
    log.transaction(fold)
    hours = query(log, "SELECT hour, exchanges FROM hours ORDER BY hour")
    assert hours == [(datetime(2026, 2, 28, 22), 1), (datetime(2026, 3, 1, 22), 1)]


def test_compacted_there_is_one_row_of_each_and_small_writes_make_no_file(log: Log) -> None:
    for number in range(3):
        add(log, number)
        log.transaction(fold)
    assert log.query("SELECT count(*) FROM exchanges_by_hour") == [(3,)]
    assert log.query("SELECT count(*) FROM ducklake_list_files('lake', 'exchanges_by_hour')") == [(0,)]
    compact(log)
    assert log.query("SELECT exchanges FROM exchanges_by_hour") == [(3,)]
    snapshot = log.snapshot()
    compact(log)
    assert log.snapshot() == snapshot


def test_nothing_new_is_not_looked_at_again_and_what_is_new_waits_a_moment(log: Log) -> None:
    folding = Folding(log)
    add(log, 1)
    folding.look()
    snapshot = log.snapshot()
    folding.look(now=True)
    assert log.snapshot() == snapshot
    add(log, 2)
    folding.look()
    assert log.query("SELECT exchanges FROM exchanges_by_hour") == [(1,)]
    folding.look(now=True)
    assert query(log, "WITH n AS (SELECT sum(exchanges) AS n FROM hours) FROM n") == [(2,)]
    assert log.query("SELECT count(*) FROM exchanges_by_hour") == [(2,)]


def test_what_a_transaction_wrote_itself_is_counted_by_another(log: Log) -> None:
    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("INSERT INTO exchanges (id, ts) VALUES ('1', now())")
        fold(connection)

    log.transaction(work)
    assert log.query("SELECT count(*) FROM exchanges_by_hour") == [(0,)]
    for _ in range(2):
        log.transaction(fold)
        assert log.query("SELECT exchanges FROM exchanges_by_hour") == [(1,)]


def test_a_reader_sees_what_is_not_counted_yet_and_writes_nothing(log: Log, tmp_path: Path) -> None:
    add(log, 1)
    reader = open_log(LogSettings(), tmp_path, read_only=True)
    assert query(reader, "SELECT sum(exchanges) FROM hours") == [(1,)]
    log.transaction(fold)
    assert query(reader, "SELECT sum(exchanges) FROM hours") == [(1,)]


def test_two_processes_at_once_count_each_exchange_once(log: Log, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FOLDER, str(tmp_path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert log.query("SELECT sum(exchanges) FROM exchanges_by_hour") == [(198,)]


def test_no_sum_names_an_exchange_a_person_or_a_path_of_theirs(log: Log) -> None:
    log.query(
        "INSERT INTO exchanges BY NAME SELECT '~canary' AS id, now() AS ts, '/v1/files/~canary' AS path, "
        "'~canary' AS tenant, '~canary' AS request, '~canary' AS answer, '~canary' AS query, '~canary' AS error"
    )
    log.query("INSERT INTO spend BY NAME SELECT '~canary' AS id, '~canary' AS exchange, now() AS ts, 1.0 AS usd")
    log.transaction(fold)
    for table in ("exchanges_by_hour", "spend_by_day"):
        rows = log.query(f"FROM {table}")
        assert len(rows) == 1
        assert "~canary" not in str(rows)
