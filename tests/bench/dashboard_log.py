"""Owns a log of many made-up exchanges, written by SQL into the real tables, and counted by the code that counts.

Bodies have the size and the redundancy of recorded ones, and no more: each task's instructions are the same in all its
exchanges, as they are in life; the rest is drawn anew for each, 7 to 29 sentences of a pool of 50,000, whose words
follow Zipf's law. A sentence comes again after some megabytes, which is farther than Parquet's compression looks back.
An answer is stored twice, in the body and as text, as ingest does. Must not know what is measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

from proxy.log import Log
from proxy.rollups import fold

DAYS = 90
TASKS = 40
STUDENTS = 6  # of the largest tasks, in the last third of the days
VERDICTS = 20_000  # of each student
_WORDS, _SENTENCES = 20_000, 50_000
_SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "en", "ar", "is", "ol", "um")]
_MODELS = "['gpt-4o', 'gpt-4o', 'gpt-4o', 'gpt-4o-mini', 'gpt-4.1']"
_CHAT = "'/v1/chat/completions'"
_STATUSES = "CASE WHEN h5 % 1000 < 8 THEN 429 WHEN h5 % 1000 < 11 THEN 500 WHEN h5 % 1000 < 12 THEN 0 ELSE 200 END"

# Who asks what, when, and how it ends. Everything follows from the number, so a second run makes the same log.
_ROWS = f"""
CREATE OR REPLACE TEMP TABLE drawn AS
SELECT n, 6 + h1 % 19 AS asked, 1 + h2 % 5 AS answered, task, model,
       CASE WHEN $last_third AND task IN (SELECT 'task-' || range FROM range({STUDENTS})) AND h3 % 10 < 6
            THEN 'student-' || task ELSE 'teacher' END AS served_by,
       {_STATUSES} AS status, h4, h5,
       CAST($day AS TIMESTAMPTZ) + to_milliseconds(CAST(86400000 * (n - $first)::DOUBLE / $count AS BIGINT)) AS ts
FROM (
  SELECT n, {", ".join(f"CAST(hash(n, {k}) >> 1 AS BIGINT) AS h{k}" for k in range(1, 8))},
         'task-' || CAST(floor(pow({TASKS}, (h6 % 100000) / 100000.0)) - 1 AS INTEGER) AS task,
         {_MODELS}[1 + h7 % 5] AS model
  FROM (SELECT unnest(range($first, $first + $count)) AS n)
)
"""
_TEXTS = f"""
CREATE OR REPLACE TEMP TABLE texts AS
SELECT n, string_agg(sentence, ' ') FILTER (place < asked) AS question,
       string_agg(sentence, ' ') FILTER (place >= asked) AS answer
FROM (SELECT n, asked, unnest(range(asked + answered)) AS place FROM drawn) d
JOIN sentences s ON s.number = CAST(hash(d.n, d.place) % {_SENTENCES} AS BIGINT)
GROUP BY n
"""
_EXCHANGES = f"""
INSERT INTO exchanges BY NAME
SELECT '01' || lpad(d.n::VARCHAR, 14, '0') || upper(left(md5(d.n::VARCHAR), 10)) AS id, ts, d.task, model,
       'POST' AS method, {_CHAT} AS path, '' AS query, served_by,
       CASE WHEN served_by = 'teacher' THEN 'no candidate' ELSE 'live' END AS reason,
       CASE WHEN served_by = 'teacher' AND $last_third AND h4 % 50 = 0 THEN 'unsure' END AS fallback, status,
       h5 % 3 = 0 AS stream, status = 0 AS partial, NULL::VARCHAR AS error,
       CASE WHEN status = 200 THEN 120 + (h4 % 3000) * pow((h5 % 100) / 100.0, 3) END AS first_byte_ms,
       200 + (h4 % 9000) * pow((h5 % 100) / 100.0, 2) AS latency_ms,
       CAST(length(question) / 4 AS BIGINT) AS prompt_tokens, CAST(length(question) / 8 * (h4 % 2) AS BIGINT)
       AS cached_tokens, CAST(length(t.answer) / 4 AS BIGINT) AS completion_tokens, 'provider' AS usage_source,
       '{{"prompt_tokens": ' || length(question) // 4 || ', "completion_tokens": ' || length(t.answer) // 4 || '}}'
       AS usage,
       CASE WHEN status = 200 THEN t.answer END AS answer, 'stop' AS finish_reason,
       '{{"model":"' || model || '","messages":[{{"role":"system","content":"' || i.text
       || '"}},{{"role":"user","content":"' || question || '"}}],"temperature":0}}' AS request,
       'utf-8' AS request_encoding, length(question) + length(i.text) + 110 AS request_bytes,
       '[["content-type","application/json"],["user-agent","OpenAI/Python 2.54.0"]]' AS request_headers,
       CASE WHEN status = 200 THEN '{{"id":"chatcmpl-' || md5(d.n::VARCHAR) || '","object":"chat.completion","model":"'
       || model || '","choices":[{{"index":0,"message":{{"role":"assistant","content":"' || t.answer
       || '"}},"finish_reason":"stop"}}]}}' ELSE '' END AS response, 'utf-8' AS response_encoding,
       CASE WHEN status = 200 THEN length(t.answer) + 190 ELSE 0 END AS response_bytes,
       '[["content-type","application/json"],["x-request-id","' || md5(d.n::VARCHAR) || '"]]' AS response_headers,
       '01' || lpad((d.n // 1000)::VARCHAR, 24, '0') || '.ndjson' AS segment, 'tenant-' || h5 % 12 AS tenant,
       'api.openai.com' AS deployment, 1 AS attempts, model || '-2024-08-06' AS answered_model
FROM drawn d JOIN texts t ON t.n = d.n JOIN instructions i ON i.task = d.task
ORDER BY d.n
"""
_SPEND = f"""
INSERT INTO spend BY NAME
SELECT e.id, e.ts, e.task, 'teacher' AS kind, e.model, e.id AS exchange, 1.0 AS quantity, 'exchange' AS unit,
       {_CHAT} AS path,
       CASE WHEN e.model <> 'gpt-4.1' OR e.prompt_tokens % 100 > 0
            THEN 0.0000025 * e.prompt_tokens + 0.00001 * e.completion_tokens END AS usd
FROM exchanges e WHERE e.ts >= CAST($day AS TIMESTAMPTZ) AND e.ts < CAST($day AS TIMESTAMPTZ) + to_days(1)
  AND e.served_by = 'teacher' AND e.status = 200
"""
_SERVING = """
INSERT INTO spend BY NAME
SELECT 's' || range AS id, CAST($day AS TIMESTAMPTZ) + to_minutes(range::BIGINT) AS ts, 'serving' AS kind,
       1.0 / 60 AS quantity, 'hour' AS unit, 0.5 / 60 AS usd FROM range(1440)
"""
_VERDICTS = f"""
INSERT INTO verdicts BY NAME
SELECT 'v' || id AS id, ts, task, 'student-' || task AS candidate, id AS exchange, 'shadow' AS kind,
       CASE WHEN hash(id) % 50 = 0 THEN 0.0 ELSE 1.0 END AS verdict, 0.9 AS confidence,
       hash(id, 1) % 10 > 1 AS covered, answer, 40.0 AS latency_ms
FROM (SELECT *, row_number() OVER (PARTITION BY task ORDER BY id) AS place FROM exchanges
      WHERE served_by = 'teacher' AND status = 200 AND task = $task
        AND ts BETWEEN CAST($day AS TIMESTAMPTZ) - to_days(3) AND CAST($day AS TIMESTAMPTZ))
WHERE place <= {VERDICTS}
"""


@dataclass(frozen=True, slots=True)
class Made:
    """The days of the log; `until` is not in it."""

    since: datetime
    until: datetime


def fill(log: Log, exchanges: int, seed: int, tell: Callable[[str], None]) -> Made:
    """Write so many exchanges over the last DAYS days, and count each day's when it is there."""
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    made = Made(until - timedelta(days=DAYS), until)
    _words(log, seed)
    for number, (first, count) in enumerate(_days(exchanges)):
        day, late = made.since + timedelta(days=number), number >= DAYS * 2 // 3
        log.query(_ROWS, {"first": first, "count": count, "day": day, "last_third": late})
        log.query(_TEXTS)
        log.query(_EXCHANGES, {"last_third": late})
        log.query(_SPEND, {"day": day})
        if late:
            log.query(_SERVING, {"day": day})
        if number == DAYS * 2 // 3:
            _students(log, day)
        log.transaction(fold)
        tell(f"{day:%Y-%m-%d}: {first + count:,} exchanges")
    for table in ("drawn", "texts", "sentences", "instructions"):
        log.query(f"DROP TABLE temp.{table}")
    return made


def _days(exchanges: int) -> Iterator[tuple[int, int]]:
    """Of each day the first number and how many; working days have more."""
    weights = [3 if day % 7 < 5 else 1 for day in range(DAYS)]
    edges = [0, *(exchanges * part // sum(weights) for part in accumulate(weights))]
    return ((first, after - first) for first, after in pairwise(edges))


def _words(log: Log, seed: int) -> None:
    """The sentences to draw from, and each task's instructions."""
    random = Random(seed)
    words = ["".join(random.choices(_SYLLABLES, k=random.choice((1, 1, 2, 2, 3)))) for _ in range(_WORDS)]
    weights = list(accumulate(1 / (rank + 2.7) for rank in range(_WORDS)))

    def sentence() -> str:
        return " ".join(random.choices(words, cum_weights=weights, k=random.randint(5, 15))).capitalize() + "."

    log.query("CREATE OR REPLACE TEMP TABLE sentences AS SELECT * FROM (SELECT unnest($texts) AS sentence, "
              "generate_subscripts($texts, 1) - 1 AS number)",
              {"texts": [sentence() for _ in range(_SENTENCES)]})  # fmt: skip
    texts = [" ".join(sentence() for _ in range(10)) for _ in range(TASKS)]
    log.query("CREATE OR REPLACE TEMP TABLE instructions AS SELECT * FROM (SELECT unnest($texts) AS text, "
              "'task-' || generate_subscripts($texts, 1) - 1 AS task)", {"texts": texts})  # fmt: skip


def _students(log: Log, day: datetime) -> None:
    """The largest tasks get one each, with the evidence it was promoted on."""
    for number in range(STUDENTS):
        task = f"task-{number}"
        log.query(
            "INSERT INTO candidates VALUES (?, ?, ?, 'student', 1, 'label', 0.5, 0.02, 0.05, 1, '', '{}')",
            [f"student-{task}", day, task],
        )
        stages = (("", "shadow"), ("shadow", "canary"), ("canary", "live"))
        for place, (before, stage) in enumerate(stages):
            log.query(
                "INSERT INTO transitions VALUES (?, ?, ?, ?, ?, ?, 'for the benchmark', NULL, 1.0)",
                [f"01{number}{place}", day, task, f"student-{task}", before, stage],
            )
        log.query(_VERDICTS, {"task": task, "day": day})


def weight(log: Log, folder: Path) -> list[tuple[str, int, int]]:
    """Of each table its rows and its bytes on disk; of the catalog its bytes."""
    data = folder / "log" / "data" / "main"
    names = ("exchanges", "spend", "verdicts", "exchanges_by_hour", "spend_by_day")
    rows = [
        (name, int(log.query(f"SELECT count(*) FROM {name}")[0][0]),
         sum(file.stat().st_size for file in (data / name).rglob("*.parquet")))
        for name in names
    ]  # fmt: skip
    catalog = sum(file.stat().st_size for file in (folder / "log").glob("catalog.sqlite*"))
    return [*rows, ("the catalog", 0, catalog)]
