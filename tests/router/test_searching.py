from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from proxy.errors import BadInput, Unavailable
from proxy.log import Log
from proxy.settings import LogSettings
from router.filters import condition
from router.searching import MOST, Found, Place, confined, read_place, rows, search, within
from tests.logs import migrated
from tests.router.conftest import insert

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    log.query("CALL ducklake_set_option('lake', 'data_inlining_row_limit', 0)")  # So that there are files to read.
    yield log
    log.close()


@pytest.fixture
def reader(log: Log, tmp_path: Path) -> Iterator[Log]:
    reader = confined(LogSettings(), tmp_path)
    yield reader
    reader.close()


def at(log: Log, *hours_ago: float, **columns: object) -> list[str]:
    return [insert(log, ["x"], ts=NOW - timedelta(hours=ago), **columns)[0] for ago in hours_ago]


def lent(log: Log) -> Callable[[], AbstractContextManager[Log]]:
    return lambda: nullcontext(log)


def ids(found: Found) -> list[str]:
    return [line.id for line in found.lines]


def test_the_newest_come_first_and_a_page_goes_on_where_the_last_ended(log: Log, reader: Log) -> None:
    known = at(log, 0.1, 0.2, 5, 20, 23)
    at(log, 25, -1)  # Outside of the range.
    found = search(reader, condition(""), NOW - DAY, NOW, 2)
    assert (ids(found), found.whole) == (known[:2], True)
    assert found.further is not None
    rest = search(reader, condition(""), NOW - DAY, NOW, 2, read_place(str(found.further)))
    assert ids(rest) == known[2:4]
    last = search(reader, condition(""), NOW - DAY, NOW, 2, rest.further)
    assert (ids(last), last.further, last.whole) == (known[4:], None, True)


def test_of_one_moment_none_is_lost_and_none_comes_twice(log: Log, reader: Log) -> None:
    known = sorted(insert(log, [str(n) for n in range(7)], ts=NOW), reverse=True)
    seen: list[str] = []
    place = None
    for _ in range(3):
        found = search(reader, condition(""), NOW - DAY, NOW, 3, place)
        seen, place = seen + ids(found), found.further
    assert (seen, place) == (known, None)


def test_a_line_has_what_was_asked_and_answered_in_excerpts(log: Log, reader: Log) -> None:
    (one,) = insert(log, ["Where is my parcel? " + "x" * 500], answer="y" * 500, ts=NOW, error="cut", latency_ms=12.5)
    (two,) = insert(log, ["-"], ts=NOW - DAY / 2, request="no JSON", answer=None, tool_calls="[1]")
    (three,) = insert(log, ["-"], ts=NOW - DAY / 3, request="AAAA", request_encoding="base64", answer=None)
    (four,) = insert(log, ["-"], ts=NOW - DAY / 4, request='{"messages": []}', answer="")
    lines = {line.id: line for line in search(reader, condition(""), NOW - DAY, NOW, 10).lines}
    assert lines[one].asked is not None
    assert lines[one].asked.startswith("Where is my parcel? xxx")
    assert (len(lines[one].asked), len(lines[one].answered or ""), lines[one].error) == (240, 240, "cut")
    assert (lines[two].asked, lines[two].answered, lines[two].latency_ms) == (None, "[1]", None)
    assert (lines[three].asked, lines[three].answered) == (None, None)
    assert (lines[four].asked, lines[four].answered) == (None, "")


def test_only_what_is_asked_for_is_found(log: Log, reader: Log) -> None:
    slow = at(log, 2, 22, latency_ms=3000.0)
    at(log, 1, 3, latency_ms=10.0)
    assert ids(search(reader, condition("latency_ms > 2000"), NOW - DAY, NOW, 10)) == slow
    with pytest.raises(BadInput, match="from 1 to"):
        search(reader, condition(""), NOW - DAY, NOW, MOST + 1)


def test_where_the_time_is_over_it_says_how_far_it_looked(log: Log, reader: Log) -> None:
    known = at(log, 0.5, 30)
    stopped = search(reader, condition(""), NOW - 2 * DAY, NOW, 10, seconds=0)
    assert (stopped.lines, stopped.whole, stopped.further) == ((), False, Place(NOW))
    assert ids(search(reader, condition(""), NOW - 2 * DAY, NOW, 10, stopped.further)) == known


def test_what_takes_too_long_or_too_much_to_read_says_so(
    log: Log, reader: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(log, 0.5)
    monkeypatch.setattr("router.searching._READING", 0.2)
    known = "length($ids) + year($since) + year($until)"
    endless = f"SELECT sum(a.range * b.range + {known}) FROM range(10000000) a, range(100000) b"
    large = f"SELECT list(range * 7 + {known}) FROM range(1000000000)"
    for query, told, seconds in ((endless, "too long to read", 0.5), (large, "more memory", 30.0)):
        monkeypatch.setattr("router.searching._ROWS", query)
        monkeypatch.setattr("router.searching._EXPORT", query)
        with pytest.raises(Unavailable, match=told):
            search(reader, condition(""), NOW - DAY, NOW, 10, seconds=seconds)
        with pytest.raises(Unavailable, match=told):
            list(rows(lent(reader), condition(""), NOW - DAY, NOW, 10, seconds=seconds))


def test_an_export_holds_no_log_while_it_is_taken(log: Log, reader: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.searching._AT_ONCE", 2)
    known, open_ = at(log, 1, 2, 3), [0]

    @contextmanager
    def counted() -> Iterator[Log]:
        open_[0] += 1
        yield reader
        open_[0] -= 1

    for row in rows(counted, condition(""), NOW - DAY, NOW, 9):
        assert (row["id"], open_) == (known.pop(0), [0])
    assert known == []


def test_the_first_of_all_years_ends_a_search(log: Log, reader: Log) -> None:
    known = at(log, 1)
    first = datetime.min.replace(tzinfo=UTC) + DAY
    assert ids(search(reader, condition(""), first, NOW, 10)) == known


def test_what_runs_too_long_is_interrupted(reader: Log) -> None:
    with pytest.raises(duckdb.InterruptException), within(reader, 0.2):
        reader.query("SELECT sum(a.range * b.range) FROM range(10000000) a, range(100000) b")
    assert reader.query("SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/hostname')", "COPY exchanges TO 'stolen.csv'", "ATTACH 'other.db'",
        "SET enable_external_access = true", "SET memory_limit = '100GB'", "DELETE FROM exchanges",
        "CREATE TABLE lake.fresh (i INTEGER)", "INSTALL httpfs", "SELECT * FROM 'http://127.0.0.1:1/x.csv'",
    ],
)  # fmt: skip
def test_a_confined_connection_reads_the_log_and_nothing_else(log: Log, reader: Log, statement: str) -> None:
    at(log, 1)
    assert reader.query("SELECT count(*) FROM exchanges") == [(1,)]
    with pytest.raises(duckdb.Error):
        reader.query(statement)


def test_a_home_may_be_named_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(migrated(Path("home"))) as log:
        log.query("CALL ducklake_set_option('lake', 'data_inlining_row_limit', 0)")
        at(log, 1)
    with closing(confined(LogSettings(), Path("home"))) as reader:
        assert reader.query("SELECT count(answer) FROM exchanges") == [(1,)]


def test_whole_exchanges_are_read_one_after_the_other(log: Log, reader: Log) -> None:
    known = at(log, 1, 2, 3)
    at(log, 4, task="other")
    found = list(rows(lent(reader), condition("task = 'triage'"), NOW - DAY, NOW, 2))
    assert [row["id"] for row in found] == known[:2]
    assert found[0]["request"].startswith('{"model": "gpt-4o"')
    assert "logprobs" not in found[0]
    assert [row["id"] for row in rows(lent(reader), condition("task = 'triage'"), NOW - DAY, NOW, 9)] == known


def test_many_are_read_a_few_at_a_time_and_never_end_in_silence(
    log: Log, reader: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.searching._AT_ONCE", 2)
    known = at(log, 0.1, 0.2, 3, 5, 20)
    assert [row["id"] for row in rows(lent(reader), condition(""), NOW - DAY, NOW, 99)] == known
    assert [row["id"] for row in rows(lent(reader), condition(""), NOW - DAY, NOW, 3)] == known[:3]
    with pytest.raises(Unavailable, match="shorter time range"):
        list(rows(lent(reader), condition(""), NOW - DAY, NOW, 9, seconds=0))


@pytest.mark.parametrize(
    "text",
    ["", "~", "x~y", "2026-11-28T00:00:00~a", "2026-11-28T00:00:00+00:00", "9" * 5000, "0001-01-01T00:00:00+14:00~a"],
)
def test_a_damaged_place_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="damaged"):
        read_place(text)


def test_a_place_survives_being_a_link() -> None:
    for place in (Place(NOW, "01ABC"), Place(NOW + timedelta(microseconds=1))):
        assert read_place(str(place)) == place
