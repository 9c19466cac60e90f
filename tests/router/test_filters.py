import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log
from router.filters import COLUMNS, DEEPEST, FLAG, LONGEST, MOST_PARTS, NUMBER, TEXT, TIME, condition
from tests.logs import migrated
from tests.router.conftest import add_rows

START = datetime(2026, 11, 1, tzinfo=UTC)
# What a condition may be made of: nothing else of the text that came in can be in it.
FIXED = re.compile(
    r'"(?P<column>\w+)"|\$filter_\d+|AND|OR|NOT|IS|NULL|IN|BETWEEN|contains|starts_with|ends_with|regexp_full_match'
    r"|length|lower|upper|'i?s'|true|=|<>|<=|>=|<|>|[(),\s]"
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    log = migrated(Path(tmp_path_factory.mktemp("filters")))
    rows = [
        {
            "id": ulid(), "ts": START + timedelta(hours=n), "task": ["triage", "o'brien", None][n % 3],
            "answer": ["refund it", "100% A_b", "", "Billing\nplease", None][n % 5], "status": [200, 429, 500][n % 3],
            "latency_ms": n * 500.5, "partial": n % 2 == 0, "stream": None if n % 4 else True, "served_by": "teacher",
        }
        for n in range(20)
    ]  # fmt: skip
    add_rows(log, "exchanges", rows)
    yield log
    log.close()


def found(log: Log, text: str) -> list[str]:
    asked = condition(text)
    return [one for (one,) in log.query(f"SELECT id FROM exchanges WHERE {asked.sql} ORDER BY id", asked.parameters)]


@pytest.mark.parametrize(
    "text",
    [
        "task = 'triage' and latency_ms > 2000 and answer like '%refund%'",
        "task = 'o''brien'", "TASK <> 'triage' OR partial", "not partial and (status in (429, 500) or stream)",
        "answer is null", "answer is not null and length(answer) <= 9", "latency_ms between 1000 and 3e3",
        "latency_ms not between 1000 and 3000", "answer not like '%it'", "answer like '100%'", "answer like '%A_b'",
        "answer like 'refund it'", "answer like '%fun_ it%'", "answer like 'Bill_ng%_lease'",
        "answer like ''", "answer like '%'", "answer like '%l%g%'", "answer ilike 'BILL%'",
        "lower(task) = 'triage'", "upper(task) in ('TRIAGE')",
        "ts >= '2026-11-01 05:00' and ts < '2026-11-01T09:00:00Z'",
        "partial = false", "stream = true", "status != 200", "confidence = 0.5", "status = -1", "not not partial",
    ],
)  # fmt: skip
def test_a_filter_finds_what_the_same_words_find_as_sql(log: Log, text: str) -> None:
    as_sql = log.query(f"SELECT id FROM exchanges WHERE {text} ORDER BY id")
    assert found(log, text) == [one for (one,) in as_sql]


def test_nothing_asked_is_everything(log: Log) -> None:
    assert len(found(log, "")) == len(found(log, " \n")) == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tsk = 'x'", "did you mean task?"), ("password = 'x'", "there are id, task"),
        ("task = triage", "'triage' at character 8, where a text in single quotes is missing"),
        ("task", "ends where =, <>"), ("task =", "ends where a value is missing"), ("task = 5", "a text in single"),
        ("status = 'x'", "where a number is missing"), ("status like '2%'", "like is for texts"),
        ("length(status) > 1", "length() is of a text"), ("length(length(answer)) > 1", "no column 'length'"),
        ("partial > 1", "true or false"), ("ts > 'yesterday'", "is no time"),
        ("ts > '0001-01-01T00:00+14:00'", "no time"), ("task = 'x", "ends with a single quote"),
        ("task = 'x' task = 'y'", "where and, or, or the end is missing"), ("(task = 'x'", "where ')' is missing"),
        ("task = 'x'; drop table exchanges", "cannot be read from"), ("1 = 1", "where a column is missing"),
        ("task in (select task from keys)", "where a text in single quotes is missing"),
        ("task not 'x'", "where like, ilike, in or between is missing"), ("and", "where a column is missing"),
        ("read_text('/etc/passwd') = 'x'", "there is no column 'read_text'"), ("logprobs is null", "no column"),
        ("exchanges.task = 'x'", "cannot be read"), ("task = 'x' -- and", "cannot be read"), ('"task" = 1', "be read"),
        ("status = 1.2.3", "cannot be read"), ("status = 12abc", "cannot be read"), ("task = ''''''x", "the end"),
        ("segment = 'x'", "no column"), ("status between 1 or 2", "'and' is missing"), ("status = 1e9999", "be read"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        condition(text)


def test_how_much_can_be_asked_is_bounded() -> None:
    with pytest.raises(BadInput, match="characters"):
        condition("a" * (LONGEST + 1))
    with pytest.raises(BadInput, match="nested deeper"):
        condition("(" * (DEEPEST + 2) + "partial" + ")" * (DEEPEST + 2))
    with pytest.raises(BadInput, match="nested deeper"):
        condition("not " * (DEEPEST + 2) + "partial")
    with pytest.raises(BadInput, match=f"more than {MOST_PARTS} conditions"):
        condition(" or ".join(["partial"] * (MOST_PARTS + 1)))
    with pytest.raises(BadInput, match=f"more than {MOST_PARTS} values"):
        condition(f"status in ({','.join(['1'] * (MOST_PARTS + 1))})")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
QUOTED = TEXTS.map(lambda text: "'" + text.replace("'", "''") + "'")
VALUES = {
    TEXT: QUOTED, NUMBER: st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6)).map(str),
    FLAG: st.sampled_from(["true", "FALSE"]), TIME: st.datetimes(datetime(2000, 1, 1)).map(lambda t: f"'{t}'"),
}  # fmt: skip


@st.composite
def parts(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(COLUMNS)))
    values = VALUES[COLUMNS[name]]
    forms = [
        "is null",
        "is not null",
        f"in ({draw(values)}, {draw(values)})",
        f"between {draw(values)} and {draw(values)}",
    ]
    forms += [f"{draw(st.sampled_from(['=', '<>', '!=', '<', '<=', '>', '>=']))} {draw(values)}"]
    if COLUMNS[name] == TEXT:
        pattern = draw(st.text("ab%_.\\*'", max_size=6)).replace("'", "''")
        forms += [f"like '{pattern}'", f"not like '{pattern}'"]
    return f"{name} {draw(st.sampled_from(forms))}"


FILTERS = st.recursive(
    parts(), lambda one: st.one_of(one.map("not ({})".format), st.tuples(one, one).map("({0[0]}) or {0[1]}".format),
                                   st.tuples(one, one).map("{0[0]} AND ({0[1]})".format)), max_leaves=6,
)  # fmt: skip


@given(FILTERS)
def test_any_filter_means_what_it_means_as_sql(log: Log, text: str) -> None:
    as_sql = log.query(f"SELECT id FROM exchanges WHERE {text} ORDER BY id")
    assert found(log, text) == [one for (one,) in as_sql]


PIECES = st.sampled_from(
    ["'", "''", '"', ";", "--", "/*", "*/", "(", ")", "select", "from", "exchanges", "union", "task", "=", "or", "1",
     "$1", "?", "read_text", "'x'", "like", "in", "and", "not", "is null", "lower(", ",", "::", "||", "\\", "$filter_0",
     "partial"],
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map(" ".join), st.lists(PIECES).map("".join)))
@example("task = 'x' or (select 1)=1")
@example("answer like '%$filter_9%'")
def test_whatever_is_written_only_fixed_words_get_into_the_sql(log: Log, text: str) -> None:
    with suppress(BadInput):
        asked = condition(text)
        at = 0
        while at < len(asked.sql):
            word = FIXED.match(asked.sql, at)
            assert word, asked.sql[at:]
            assert word["column"] is None or word["column"] in COLUMNS
            at = word.end()
        (parsed,) = duckdb.extract_statements(f"SELECT id FROM exchanges WHERE {asked.sql}")
        assert parsed.type == duckdb.StatementType.SELECT
        assert parsed.named_parameters == set(asked.parameters)
        found(log, text)
