"""Owns the way from the spool to the log: whole segments, exactly once.

A segment's rows, what they cost and its name are committed together, so a crash at any point loses nothing and doubles
nothing; the file is moved only afterwards. Ingested segments are kept for a while: the log can be rebuilt from them.
A line that is no record goes to quarantine and takes no other with it; a segment that cannot be read waits and holds
up no other; below the disk's high-water mark all of them wait.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
from duckdb import sqltype
from duckdb.func import FunctionNullHandling

from proxy.bodies import decoded
from proxy.derive import PAID, Estimate, Price, derive
from proxy.log import Log
from proxy.messages import prompt_to_pay
from proxy.quarantine import Patience, sift
from proxy.spool import Room, adopt, closed_segments, open_segments

_log = logging.getLogger("stillroom.ingest")

TOGETHER = 64  # segments in one transaction: few commits when there is much to catch up with

RECORD = {
    "id": "VARCHAR", "ts": "TIMESTAMPTZ", "method": "VARCHAR", "path": "VARCHAR", "query": "VARCHAR",
    "task_header": "VARCHAR", "request_headers": "VARCHAR", "request": "VARCHAR", "request_encoding": "VARCHAR",
    "request_bytes": "BIGINT", "status": "INTEGER", "response_headers": "VARCHAR", "response": "VARCHAR",
    "response_encoding": "VARCHAR", "response_bytes": "BIGINT", "stream": "BOOLEAN", "partial": "BOOLEAN",
    "error": "VARCHAR", "served_by": "VARCHAR", "reason": "VARCHAR", "confidence": "DOUBLE", "fallback": "VARCHAR",
    "first_byte_ms": "DOUBLE", "latency_ms": "DOUBLE",
    "tenant": "VARCHAR", "deployment": "VARCHAR", "attempts": "INTEGER",  # not in segments of before
    "teacher": "VARCHAR", "lang": "VARCHAR",  # nor these
    "logprobs": "VARCHAR",  # in base64; not in segments of before, nor in most lines
}  # fmt: skip
"""What a line of a segment holds: all of it but the header is a column of `exchanges` too, `logprobs` as bytes."""
_NULLS = FunctionNullHandling.SPECIAL  # Unknown counts reach the function as None.
_DERIVED = (
    "STRUCT(task VARCHAR, model VARCHAR, answer VARCHAR, tool_calls VARCHAR, finish_reason VARCHAR, "
    "prompt_tokens BIGINT, cached_tokens BIGINT, completion_tokens BIGINT, usage VARCHAR, usage_source VARCHAR, "
    "ended BOOLEAN, answered_model VARCHAR)"
)

_CHARGE = """
INSERT INTO spend BY NAME
SELECT id, ts, task, 'teacher' AS kind, model, path, id AS exchange, 1.0 AS quantity, 'exchange' AS unit,
       price(model, prompt_to_pay(prompt_tokens, usage), cached_tokens, completion_tokens) AS usd
FROM exchanges
WHERE list_contains($names, segment) AND served_by = 'teacher' AND status = 200 AND list_contains($paid, path)
"""
_NAMES = """
INSERT INTO segments
SELECT name, (SELECT count(*) FROM exchanges WHERE segment = name), now() FROM (SELECT unnest($names) AS name)
"""
# A JSON null, or an object of somebody else's, is read as a row of NULLs; a damaged time has no day to be kept under.
_NEEDED = (
    "id", "ts", "method", "path", "request_headers", "request", "request_encoding", "request_bytes", "status",
    "response_headers", "response", "response_encoding", "response_bytes", "stream", "partial", "served_by",
)  # fmt: skip
_WHOLE = f"""
CASE WHEN id = '' OR ts NOT BETWEEN '2000-01-01' AND '2200-01-01' OR {" OR ".join(f"{key} IS NULL" for key in _NEEDED)}
     THEN error('not a whole record') ELSE true END
"""
_RECORDS = f"""
FROM (
  SELECT r.* REPLACE (from_base64(r.logprobs) AS logprobs),
         unnest(derive(path, task_header, request, request_encoding, request_headers,
                            status, stream, response, response_encoding, response_headers))
  FROM read_json($files, format = 'newline_delimited', columns = $columns, filename = true,
                 maximum_object_size = 1073741824) AS r
  WHERE {_WHOLE}
)
""".replace("$columns", "{" + ", ".join(f"{key}: '{kind}'" for key, kind in RECORD.items()) + "}")
_TRY_OUT = (
    f"SELECT count(*), bit_xor(hash(records)) FROM (SELECT * {_RECORDS}) AS records"  # So that every column is read.
)
_INSERT = f"""
INSERT INTO exchanges BY NAME
SELECT * EXCLUDE (task_header, partial, ended, filename) REPLACE (if(partial OR NOT ended, NULL, logprobs) AS logprobs),
       partial OR NOT ended AS partial, parse_filename(filename) AS segment
{_RECORDS}
"""


class Ingest:
    """Moves closed segments of one spool folder into one log; use from one process only."""

    def __init__(
        self,
        log: Log,
        spool: Path,
        keep_days: int,
        price: Price,
        estimate: Estimate | None = None,
        min_free: int = 0,
    ) -> None:
        """Register the derivation and the price with the log's connection; nothing is ingested below `min_free` bytes.

        `estimate` counts the tokens of whole answers whose provider sent no usage; they are marked as estimated.
        """
        self._log, self._spool, self._keep_days = log, spool, keep_days
        self.ingested = 0  # exchanges so far
        self._done, self._sifted = spool / "ingested", spool / "sifted"
        self._room, self._waits = Room(spool, min_free), False
        self._patience = Patience()
        function = log.connection.create_function
        text, count, flag = sqltype("VARCHAR"), sqltype("BIGINT"), sqltype("BOOLEAN")
        bodies: list[Any] = [text] * 5 + [count, flag] + [text] * 3
        function("derive", _deriving(estimate), bodies, sqltype(_DERIVED), null_handling=_NULLS)
        counts: list[Any] = [text, count, count, count]
        function("prompt_to_pay", prompt_to_pay, [count, text], count, null_handling=_NULLS)
        function("price", price, counts, sqltype("DOUBLE"), null_handling=_NULLS)

    def run(self) -> int:
        """Ingest everything that is ready; returns the number of exchanges that were new to the log."""
        fresh = 0
        if self._has_room():
            self._done.mkdir(parents=True, exist_ok=True)
            for path in filter(self._due, open_segments(self._spool)):
                self._adopt(path)
            ready = list(filter(self._due, closed_segments(self._spool)))
            for start in range(0, len(ready), TOGETHER):
                fresh += self._segments(ready[start : start + TOGETHER])
        self.ingested += fresh
        self._forget_old()
        return fresh

    def _has_room(self) -> bool:
        short = self._room.short()
        if short != self._waits:
            self._waits = short
            _log.error("the disk is down to spool.min_free_mb: segments wait" if short else "segments enter again")
        return not short

    def _due(self, segment: Path) -> bool:
        return self._patience.due(segment.name)

    def _adopt(self, path: Path) -> None:
        try:
            if adopt(path) is not None:
                _log.warning("segment %s had lost its writer; it was closed", path.name)
        except OSError as error:
            self._wait(path, error)

    def _segments(self, segments: Sequence[Path]) -> int:
        try:
            fresh = self._log.transaction(lambda connection: _insert(connection, segments))
        except (duckdb.Error, OSError):  # One of them, or the log. Each alone tells, and does not hold up the others.
            return sum(self._alone(segment) for segment in segments)
        for segment in segments:
            segment.rename(self._done / segment.name)
        return fresh

    def _alone(self, segment: Path) -> int:
        """Ingest the lines of one segment that are records; an error is now the log's, and is raised."""
        try:
            records, others = sift(segment, self._try_out, self._sifted)
        except OSError as error:
            self._wait(segment, error)
            return 0
        if others:
            _log.error("segment %s: %d lines are no records and are now in quarantine", segment.name, others)
        fresh = self._log.transaction(lambda connection: _insert(connection, [records]))
        segment.rename(self._done / segment.name)
        records.unlink()
        self._patience.worked(segment.name)
        return fresh

    def _try_out(self, lines: Path) -> None:
        found = self._log.connection.execute(_TRY_OUT, {"files": [str(lines)]}).fetchone() or (0,)
        _same(found[0], [lines])

    def _wait(self, segment: Path, error: OSError) -> None:
        delay = self._patience.failed(segment.name)
        _log.error("segment %s waits, it is tried again in %.0f s: %s", segment.name, delay, error.strerror or error)

    def _forget_old(self) -> None:
        limit = time.time() - self._keep_days * 86400
        for segment in closed_segments(self._done):
            if segment.stat().st_mtime < limit:
                segment.unlink()


def _insert(connection: duckdb.DuckDBPyConnection, segments: Sequence[Path]) -> int:
    """Rows, charges and names of the segments the log does not know yet; returns the number of rows."""
    names = [segment.name for segment in segments]
    known = connection.execute("SELECT name FROM segments WHERE list_contains(?, name)", [names]).fetchall()
    new = [segment for segment in segments if (segment.name,) not in known]
    if not new:
        return 0
    files = {"files": [str(segment) for segment in new]}
    (rows,) = connection.execute(_INSERT, files).fetchone() or (0,)
    _same(rows, new)
    fresh = [segment.name for segment in new]
    connection.execute(_CHARGE, {"names": fresh, "paid": PAID})
    connection.execute(_NAMES, {"names": fresh})
    return int(rows)


def _same(rows: int, files: Sequence[Path]) -> None:
    """As many rows as lines: what little the reader passes over in silence, such as a lone brace, is no record."""
    lines = sum(map(_lines, files))
    if rows != lines:
        raise duckdb.InvalidInputException(f"{lines} lines gave {rows} rows")


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(bool(line.strip(b" \t\r\n")) for line in lines)


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
