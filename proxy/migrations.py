"""Owns the schema of the log: a numbered, append-only list that records itself.

An older log is brought up to date, a newer one is refused. Never edit an entry that was released; append one. Each can
be repeated: where the record of it was lost with a file, it is applied again and changes nothing.
Money is US dollars; NULL money means unpriced, never zero.
"""

import contextlib
from collections.abc import Callable

import duckdb

from proxy.errors import Refused
from proxy.ids import ulid
from proxy.log import Log

Migration = Callable[[duckdb.DuckDBPyConnection], None]

EXCHANGES = """
CREATE TABLE IF NOT EXISTS exchanges (
  id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, model VARCHAR,
  method VARCHAR, path VARCHAR, query VARCHAR,
  served_by VARCHAR, reason VARCHAR, fallback VARCHAR, confidence DOUBLE,
  status INTEGER, stream BOOLEAN, partial BOOLEAN, error VARCHAR,
  first_byte_ms DOUBLE, latency_ms DOUBLE,
  prompt_tokens BIGINT, cached_tokens BIGINT, completion_tokens BIGINT, usage_source VARCHAR, usage VARCHAR,
  answer VARCHAR, tool_calls VARCHAR, finish_reason VARCHAR,
  request VARCHAR, request_encoding VARCHAR, request_bytes BIGINT, request_headers VARCHAR,
  response VARCHAR, response_encoding VARCHAR, response_bytes BIGINT, response_headers VARCHAR,
  segment VARCHAR
)"""


# Of each exchange the last score, right answer and comment that its own tenant gave, or the operator in its place;
# `gold` is the id of the feedback that has the answer. What names another tenant's exchange, or none that is here, is
# in no row.
FEEDBACK_VIEW = """
CREATE VIEW IF NOT EXISTS feedback AS
SELECT e.id AS exchange, e.task, e.tenant, e.served_by, max(f.ts) AS ts, arg_max(f.score, f.id) AS score,
       arg_max(f.answer, f.id) AS answer, max(f.id) FILTER (f.answer IS NOT NULL) AS gold,
       arg_max(f.comment, f.id) AS comment
FROM (
  SELECT id, ts, tenant, response ->> '$.exchange' AS exchange, CAST(response ->> '$.score' AS DOUBLE) AS score,
         response ->> '$.answer' AS answer, response ->> '$.comment' AS comment
  FROM exchanges WHERE path = '/v1/feedback' AND served_by = 'stillroom' AND status = 200
) AS f
JOIN exchanges e ON e.id = f.exchange AND e.tenant IS NOT DISTINCT FROM f.tenant AND e.path <> '/v1/feedback'
GROUP BY e.id, e.task, e.tenant, e.served_by
"""


def _first(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(EXCHANGES)
    connection.execute("ALTER TABLE exchanges SET PARTITIONED BY (year(ts), month(ts), day(ts))")
    connection.execute("CREATE TABLE IF NOT EXISTS segments (name VARCHAR, exchanges BIGINT, ingested_at TIMESTAMPTZ)")
    connection.execute(
        """CREATE TABLE IF NOT EXISTS candidates (
        id VARCHAR, created_at TIMESTAMPTZ, task VARCHAR, kind VARCHAR, ordinal INTEGER,
        evaluator VARCHAR, threshold DOUBLE, margin DOUBLE, alpha DOUBLE,
        snapshot BIGINT, bundle VARCHAR, card VARCHAR)"""
    )
    connection.execute(
        """CREATE TABLE IF NOT EXISTS verdicts (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, candidate VARCHAR, exchange VARCHAR, kind VARCHAR,
        verdict DOUBLE, confidence DOUBLE, covered BOOLEAN, answer VARCHAR, latency_ms DOUBLE, error VARCHAR)"""
    )
    connection.execute(
        """CREATE TABLE IF NOT EXISTS transitions (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, candidate VARCHAR, stage_from VARCHAR, stage_to VARCHAR,
        reason VARCHAR, certificate VARCHAR)"""
    )
    connection.execute(
        """CREATE TABLE IF NOT EXISTS spend (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, kind VARCHAR, model VARCHAR, exchange VARCHAR,
        usd DOUBLE, quantity DOUBLE, unit VARCHAR)"""
    )


def _who_and_where(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS tenant VARCHAR")
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS deployment VARCHAR")
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS attempts INTEGER")


def _books_of_their_own(connection: duckdb.DuckDBPyConnection) -> None:
    """What the ledger needs of an exchange outlives it: charges know their path, `carried` counts what was dropped."""
    connection.execute("ALTER TABLE spend ADD COLUMN IF NOT EXISTS path VARCHAR")
    connection.execute(
        "UPDATE spend SET path = (SELECT any_value(e.path) FROM exchanges e WHERE e.id = spend.exchange) "
        "WHERE kind = 'teacher' AND path IS NULL AND exchange IN (SELECT id FROM exchanges)"
    )
    connection.execute(
        """CREATE TABLE IF NOT EXISTS carried (
        day DATE, task VARCHAR, model VARCHAR, served_by VARCHAR, exchanges BIGINT, fallbacks BIGINT,
        prompt_tokens BIGINT, cached_tokens BIGINT, completion_tokens BIGINT, estimated BIGINT, uncounted BIGINT)"""
    )


def _evidence(connection: duckdb.DuckDBPyConnection) -> None:
    """A verdict's yardstick is how the teacher agrees with itself on the same exchange; NULL where nobody asked.

    Where `gold` is set, both models' answers were scored against the right one, which that feedback has; the verdict
    then counts as 1 + candidate_right - teacher_right, at most 1. A transition's share is what part of the task's
    conversations the candidate answers from then on, in [0, 1].
    """
    connection.execute("ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS yardstick DOUBLE")
    connection.execute("ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS yardstick_answer VARCHAR")
    connection.execute("ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS gold VARCHAR")
    connection.execute("ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS candidate_right DOUBLE")
    connection.execute("ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS teacher_right DOUBLE")
    connection.execute(FEEDBACK_VIEW)
    connection.execute("ALTER TABLE transitions ADD COLUMN IF NOT EXISTS share DOUBLE")
    connection.execute(
        """CREATE TABLE IF NOT EXISTS freezes (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, frozen BOOLEAN, reason VARCHAR)"""
    )
    connection.execute(
        """CREATE TABLE IF NOT EXISTS judges (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, judge VARCHAR, calibration VARCHAR)"""
    )


def _sampling(connection: duckdb.DuckDBPyConnection) -> None:
    """A verdict's share is the chance its comparison had to be judged, NULL for certain; one not judged has none."""
    connection.execute("ALTER TABLE verdicts ADD COLUMN IF NOT EXISTS share DOUBLE")


def _probabilities(connection: duckdb.DuckDBPyConnection) -> None:
    """Of an answer's tokens, packed as `proxy.logprobs` reads it; NULL where nobody asked, or they must not be kept."""
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS logprobs BLOB")


def _rationales(connection: duckdb.DuckDBPyConnection) -> None:
    """Why the teacher answered an exchange as it did; a question that is here is never asked again.

    Without `text` it had nothing to say.
    """
    connection.execute(
        """CREATE TABLE IF NOT EXISTS rationales (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, model VARCHAR, exchange VARCHAR, text VARCHAR, finish VARCHAR,
        usd DOUBLE, prompt_tokens BIGINT, completion_tokens BIGINT)"""
    )


def _languages_and_models(connection: duckdb.DuckDBPyConnection) -> None:
    """`answered_model` is who an answer says it is from; `model` who was asked.

    `teacher` names the declared teacher an exchange was sent to, NULL for the usual one; `lang` is the language of its
    request where the task's teachers go by that.
    """
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS answered_model VARCHAR")
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS teacher VARCHAR")
    connection.execute("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS lang VARCHAR")


def _repeats(connection: duckdb.DuckDBPyConnection) -> None:
    """What the teacher said when it was asked an exchange's request once more, for students to learn from or not.

    `agreed`, in [0, 1], is the verdict of the two answers; NULL where there was no second one.
    """
    connection.execute(
        """CREATE TABLE IF NOT EXISTS repeats (
        id VARCHAR, ts TIMESTAMPTZ, task VARCHAR, model VARCHAR, exchange VARCHAR, answer VARCHAR, finish VARCHAR,
        agreed DOUBLE, usd DOUBLE, prompt_tokens BIGINT, completion_tokens BIGINT)"""
    )


MIGRATIONS: tuple[Migration, ...] = (
    _first, _who_and_where, _books_of_their_own, _evidence, _sampling, _probabilities, _rationales,
    _languages_and_models, _repeats,
)  # fmt: skip

# A changed table has a second place inside the catalog for small writes. The first goes when it is next emptied, and
# then connections opened before cannot read the table any more, until the schema changes again: so both are done now.
_ATTEMPTS = 20
_TWO_PLACES = """
SELECT 1 FROM __ducklake_metadata_lake.ducklake_inlined_data_tables GROUP BY table_id HAVING count(*) > 1
"""


def migrate(log: Log) -> int:
    """Bring the log up to the newest version and return it; Refused when the log is newer than this program."""
    log.transaction(lambda c: c.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER, ts TIMESTAMPTZ)"))
    done = version(log)
    if done > len(MIGRATIONS):
        raise Refused(f"the log is at version {done}, this program knows {len(MIGRATIONS)}: update Stillroom")
    for number, migration in enumerate(MIGRATIONS[done:], done + 1):
        log.transaction(lambda c, n=number, m=migration: _apply(c, n, m))  # type: ignore[misc]
    _one_place(log)
    return len(MIGRATIONS)


def _one_place(log: Log) -> None:
    """Empty first places, and have every open connection look at the schema again, which any change of it does."""
    seen = False
    for _ in range(_ATTEMPTS):
        if not log.query(_TWO_PLACES):
            break
        seen = True
        with contextlib.suppress(duckdb.Error):  # Another process was first.
            log.query("CALL ducklake_flush_inlined_data('lake')")
    if seen:
        name = f"changed_{ulid()}"
        log.query(f"CREATE TABLE {name} (i INTEGER)")
        log.query(f"DROP TABLE {name}")


def version(log: Log) -> int:
    """The number of the last migration that was applied."""
    return int(log.query("SELECT coalesce(max(number), 0) FROM migrations")[0][0])


def _apply(connection: duckdb.DuckDBPyConnection, number: int, migration: Migration) -> None:
    (applied,) = connection.execute("SELECT count(*) FROM migrations WHERE number = ?", [number]).fetchone() or (0,)
    if not applied:
        migration(connection)
        connection.execute("INSERT INTO migrations VALUES (?, now())", [number])
