"""Owns the way from the spool to the log: whole segments, exactly once.

A segment's rows, what they cost and its name are committed together, so a crash at any point loses nothing and doubles
nothing; the file is moved only afterwards. Ingested segments are kept for a while: the log can be rebuilt from them.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
from duckdb import sqltype
from duckdb.func import FunctionNullHandling

from proxy.bodies import decoded
from proxy.derive import PAID, Estimate, derive
from proxy.log import Log
from proxy.spool import adopt, closed_segments

_log = logging.getLogger("stillroom.ingest")

TOGETHER = 64  # segments in one transaction: few commits when there is much to catch up with

_RECORD = {
    "id": "VARCHAR", "ts": "TIMESTAMPTZ", "method": "VARCHAR", "path": "VARCHAR", "query": "VARCHAR",
    "task_header": "VARCHAR", "request_headers": "VARCHAR", "request": "VARCHAR", "request_encoding": "VARCHAR",
    "request_bytes": "BIGINT", "status": "INTEGER", "response_headers": "VARCHAR", "response": "VARCHAR",
    "response_encoding": "VARCHAR", "response_bytes": "BIGINT", "stream": "BOOLEAN", "partial": "BOOLEAN",
    "error": "VARCHAR", "served_by": "VARCHAR", "reason": "VARCHAR", "confidence": "DOUBLE", "fallback": "VARCHAR",
    "first_byte_ms": "DOUBLE", "latency_ms": "DOUBLE",
}  # fmt: skip
_NULLS = FunctionNullHandling.SPECIAL  # Unknown counts reach the function as None.
_DERIVED = (
    "STRUCT(task VARCHAR, model VARCHAR, answer VARCHAR, tool_calls VARCHAR, finish_reason VARCHAR, "
    "prompt_tokens BIGINT, cached_tokens BIGINT, completion_tokens BIGINT, usage VARCHAR, usage_source VARCHAR, "
    "ended BOOLEAN)"
)
# Called with model, prompt tokens, cached tokens, completion tokens; US dollars, or None for unpriced.
Price = Callable[[str | None, int | None, int | None, int | None], float | None]

_CHARGE = """
INSERT INTO spend BY NAME
SELECT id, ts, task, 'teacher' AS kind, model, id AS exchange, 1.0 AS quantity, 'exchange' AS unit,
       price(model, prompt_tokens, cached_tokens, completion_tokens) AS usd
FROM exchanges
WHERE list_contains($names, segment) AND served_by = 'teacher' AND status = 200 AND list_contains($paid, path)
"""
_NAMES = """
INSERT INTO segments
SELECT name, (SELECT count(*) FROM exchanges WHERE segment = name), now() FROM (SELECT unnest($names) AS name)
"""
_INSERT = """
INSERT INTO exchanges BY NAME
SELECT * EXCLUDE (task_header, partial, ended, filename), partial OR NOT ended AS partial,
       parse_filename(filename) AS segment
FROM (
  SELECT r.*, unnest(derive(path, task_header, request, request_encoding, request_headers,
                            status, stream, response, response_encoding, response_headers))
  FROM read_json($files, format = 'newline_delimited', columns = $columns, filename = true,
                 maximum_object_size = 1073741824) AS r
)
"""


class Ingest:
    """Moves closed segments of one spool folder into one log; use from one process only."""

    def __init__(self, log: Log, spool: Path, keep_days: int, price: Price, estimate: Estimate | None = None) -> None:
        """Register the derivation and the price with the log's connection.

        `estimate` counts the tokens of whole answers whose provider sent no usage; they are marked as estimated.
        """
        self._log, self._spool, self._keep_days = log, spool, keep_days
        self._done = spool / "ingested"
        self.ingested = 0  # exchanges so far
        function = log.connection.create_function
        text, count, flag = sqltype("VARCHAR"), sqltype("BIGINT"), sqltype("BOOLEAN")
        bodies: list[Any] = [text] * 5 + [count, flag] + [text] * 3
        function("derive", _deriving(estimate), bodies, sqltype(_DERIVED), null_handling=_NULLS)
        counts: list[Any] = [text, count, count, count]
        function("price", price, counts, sqltype("DOUBLE"), null_handling=_NULLS)

    def run(self) -> int:
        """Ingest everything that is ready; returns the number of exchanges that were new to the log."""
        self._done.mkdir(parents=True, exist_ok=True)
        for orphan in adopt(self._spool):
            _log.warning("segment %s had lost its writer; it was repaired and closed", orphan.name)
        ready = closed_segments(self._spool)
        fresh = 0
        for start in range(0, len(ready), TOGETHER):
            added = self._segments(ready[start : start + TOGETHER])
            fresh, self.ingested = fresh + added, self.ingested + added
        self._forget_old()
        return fresh

    def _segments(self, segments: Sequence[Path]) -> int:
        try:
            fresh = self._log.transaction(lambda connection: _insert(connection, segments))
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            _log.error("of %d segments one cannot be read: %s", len(segments), str(error).splitlines()[0])
            for segment in segments:
                _quarantine(segment)
            fresh = self._log.transaction(lambda connection: _insert(connection, segments))
        for segment in segments:
            segment.rename(self._done / segment.name)
        return fresh

    def _forget_old(self) -> None:
        limit = time.time() - self._keep_days * 86400
        for segment in self._done.iterdir():
            if segment.stat().st_mtime < limit:
                segment.unlink()


def _insert(connection: duckdb.DuckDBPyConnection, segments: Sequence[Path]) -> int:
    """Rows, charges and names of the segments the log does not know yet; returns the number of rows."""
    names = [segment.name for segment in segments]
    known = connection.execute("SELECT name FROM segments WHERE list_contains(?, name)", [names]).fetchall()
    new = [segment for segment in segments if (segment.name,) not in known]
    if not new:
        return 0
    columns = "{" + ", ".join(f"{key}: '{kind}'" for key, kind in _RECORD.items()) + "}"
    files = {"files": [str(segment) for segment in new]}
    (rows,) = connection.execute(_INSERT.replace("$columns", columns), files).fetchone() or (0,)
    fresh = [segment.name for segment in new]
    connection.execute(_CHARGE, {"names": fresh, "paid": PAID})
    connection.execute(_NAMES, {"names": fresh})
    return int(rows)


def _deriving(estimate: Estimate | None) -> Callable[..., dict[str, Any]]:
    def run(
        path: str,
        task_header: str | None,
        request: str,
        request_encoding: str,
        request_headers: str,
        status: int,
        stream: bool,
        response: str,
        response_encoding: str,
        response_headers: str,
    ) -> dict[str, Any]:
        asked = decoded(request, request_encoding, request_headers)
        answered = decoded(response, response_encoding, response_headers)
        return dataclasses.asdict(derive(path, task_header, asked, status, stream, answered, estimate))

    return run


def _quarantine(segment: Path) -> None:
    """Keep the lines that are whole records; move the others, with the reason, to `*.poison` beside the segment."""
    good: list[str] = []
    bad: list[str] = []
    for line in segment.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not set(_RECORD) <= set(record):
                raise ValueError("not a whole record")
            good.append(line)
        except ValueError as error:
            bad.append(json.dumps({"reason": str(error), "line": line}))
    if not bad:
        return
    segment.with_suffix(".poison").write_text("\n".join(bad) + "\n", encoding="utf-8")
    replacement = segment.with_suffix(".repair")
    replacement.write_text("".join(line + "\n" for line in good), encoding="utf-8")
    replacement.rename(segment)
