"""Owns right answers that come in bulk: a file of them, matched with recorded exchanges and told to the log.

Must not compare answers; `router.gold` does, as with those that clients give. What is told is feedback, redacted like
any exchange before it touches the disk, and of the exchange's own tenant, whoever that is: who may open the log is
trusted with all of it. All of a file enters the log in one transaction or nothing does; the same file told again
changes nothing. The spool knows nothing of it: after a repair that went back to a backup, tell the file again.

A line names its exchange or says what was asked, and is then right for every exchange that asked exactly this. What is
compared is the recorded request, so requests that differ in redacted values alone are the same.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb

from proxy import strict_json
from proxy.bodies import decoded
from proxy.errors import BadInput
from proxy.exchange import Exchange
from proxy.feedback import FEEDBACK, STILLROOM, read_feedback, respond
from proxy.ids import ulid
from proxy.ingest import RECORD
from proxy.log import Log
from proxy.patterns import KINDS
from proxy.redact import Redactor

IMPORTED = "imported"
"""The reason of an exchange that a file told."""
_FORMS = 'write {"exchange": "...", "answer": "..."} or {"request": {"messages": [...]}, "answer": "..."}, and no more'
AT_ONCE = 1000  # rows held while looking through the log, or told with one statement

_ASKED = ("messages", "tools", "response_format")  # What of a body is compared, as far as a line has it.
_PLACEHOLDER = re.compile(rf"\[({'|'.join(KINDS)})_\d+\]")
_NAMED = "SELECT id, tenant FROM exchanges WHERE path <> $path AND id IN (SELECT unnest(CAST($ids AS VARCHAR[])))"
_CHATS = """
SELECT id, request, request_encoding, request_headers FROM exchanges
WHERE path = '/v1/chat/completions' AND status = 200
"""
_TOLD = """
SELECT response ->> '$.exchange', arg_max(response ->> '$.answer', id) FROM exchanges
WHERE path = $path AND served_by = $by AND reason = $reason GROUP BY 1
"""
_COLUMNS = {name: kind for name, kind in RECORD.items() if name != "task_header"}
_TELL = f"""
INSERT INTO exchanges BY NAME
SELECT unnest(from_json(CAST($records AS JSON), '{json.dumps([_COLUMNS])}'), recursive := true)
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A right answer, with the id of its exchange, or the fields of what was asked and what they are compared by."""

    number: int
    answer: str
    exchange: str | None
    fields: tuple[str, ...] = ()
    asked: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file: its lines, the exchanges they are about, those told now, the lines about none."""

    lines: int
    exchanges: int
    new: int
    unmatched: tuple[int, ...]


def import_gold(log: Log, file: Path, redactor: Redactor) -> Imported:
    """Tell the log the right answers of a file; BadInput, with nothing told, where a line is wrong or two disagree."""
    lines = read_gold(file, redactor)
    about = _exchanges(log, lines)
    known: dict[str, Line] = {}
    for line, exchanges in zip(lines, about, strict=True):
        for exchange in exchanges:
            if known.setdefault(exchange, line).answer != line.answer:
                raise BadInput(_disagree(file, known[exchange].number, line.number, exchange))
    records = {exchange: _record(exchange, line.answer, redactor) for exchange, line in known.items()}
    fresh = log.transaction(lambda connection: _tell(connection, records))
    unmatched = tuple(line.number for line, exchanges in zip(lines, about, strict=True) if not exchanges)
    return Imported(len(lines), len(known), fresh, unmatched)


def read_gold(file: Path, redactor: Redactor) -> list[Line]:
    """All lines; BadInput names the first that is none, and what it should be."""
    lines = []
    try:
        with file.open("rb") as found:
            for number, text in enumerate(found, 1):
                lines.append(_line(number, text, redactor))
    except BadInput as error:
        raise BadInput(f"{file}, line {len(lines) + 1}: {error}") from None
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): give a JSON Lines file") from None
    if not lines:
        raise BadInput(f"{file} is empty: write one right answer a line")
    return lines


def _line(number: int, text: bytes, redactor: Redactor) -> Line:
    line = strict_json.read(text)
    if not isinstance(line, dict) or line.keys() not in ({"exchange", "answer"}, {"request", "answer"}):
        raise BadInput(_FORMS)
    answer, named = line["answer"], "exchange" in line
    if answer is None:
        raise BadInput("answer is null: leave out lines whose right answer is not known")
    said = read_feedback(_body(line["exchange"] if named else ulid(), answer))
    if named:
        return Line(number, answer, said.exchange)
    body = json.dumps(_chat(line["request"])).encode()
    request = json.loads(redactor.exchange(body, b"")[0])
    fields = tuple(name for name in _ASKED if name in request)
    # Beside what was asked, as what that shows to be somebody's name is one in the answer too.
    _, beside = redactor.exchange(body, json.dumps({"answer": answer}).encode())
    return Line(number, json.loads(beside)["answer"], None, fields, _asked(request, fields))


def _chat(request: Any) -> dict[str, Any]:
    body = {"messages": request} if isinstance(request, list) else request
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise BadInput("request must be the messages that were sent, or the body of a chat completion with them")
    return body


def _asked(body: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Equal where these fields are; which number a placeholder has depends on what else there was to redact."""
    names: dict[str, str] = {}
    text = json.dumps({name: body.get(name) for name in fields}, sort_keys=True)
    plain = _PLACEHOLDER.sub(lambda found: names.setdefault(found[0], f"[{found[1]}_{len(names)}]"), text)
    return sha256(plain.encode()).hexdigest()


def _exchanges(log: Log, lines: Sequence[Line]) -> list[Sequence[str]]:
    """The exchanges that each line is about."""
    named = [line.exchange for line in lines if line.exchange is not None]
    there = {identity: [identity] for identity, _ in log.query(_NAMED, {"path": FEEDBACK, "ids": named})}
    asking = _asking(log, lines)
    return [asking[line.asked] if line.asked else there.get(line.exchange or "", []) for line in lines]


def _asking(log: Log, lines: Sequence[Line]) -> Mapping[str, list[str]]:
    """For what lines say was asked, the exchanges that asked it; the log's requests are read once."""
    asking: dict[str, list[str]] = {line.asked: [] for line in lines if line.asked}
    shapes = {line.fields for line in lines if line.asked}
    for identity, body in _bodies(log) if asking else ():
        for asked in {_asked(body, fields) for fields in shapes} & asking.keys():
            asking[asked].append(identity)
    return asking


def _bodies(log: Log) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The chat completions in the log that were answered: id, and the body that was sent."""
    rows = log.connection.execute(_CHATS)
    while some := rows.fetchmany(AT_ONCE):
        for identity, *request in some:
            with contextlib.suppress(ValueError, RecursionError):
                body = json.loads(decoded(*request))
                if isinstance(body, dict):
                    yield identity, body


def _record(exchange: str, answer: str, redactor: Redactor) -> dict[str, Any]:
    """The exchange by which a client would have told it, as the spool would keep it; still without the tenant."""
    identity, body = ulid(), _body(exchange, answer)
    status, receipt = respond("POST", identity, body, True)
    told = Exchange(
        identity, time.time(), "POST", FEEDBACK, request=body, status=status, response=receipt, served_by=STILLROOM,
        reason=IMPORTED,
    )  # fmt: skip
    record: dict[str, Any] = json.loads(told.line(redactor))
    return record


def _body(exchange: Any, answer: Any) -> bytes:
    return json.dumps({"exchange": exchange, "answer": answer}).encode()


def _tell(connection: duckdb.DuckDBPyConnection, records: Mapping[str, Mapping[str, Any]]) -> int:
    """Insert what no file has told of its exchange last; how many."""
    tenants = dict(connection.execute(_NAMED, {"path": FEEDBACK, "ids": list(records)}).fetchall())
    told = dict(connection.execute(_TOLD, {"path": FEEDBACK, "by": STILLROOM, "reason": IMPORTED}).fetchall())
    fresh = [
        {**record, "tenant": tenants[exchange]}
        for exchange, record in records.items()
        if exchange in tenants and told.get(exchange) != json.loads(record["response"])["answer"]
    ]
    for start in range(0, len(fresh), AT_ONCE):
        connection.execute(_TELL, {"records": json.dumps(fresh[start : start + AT_ONCE])})
    return len(fresh)


def _disagree(file: Path, one: int, other: int, exchange: str) -> str:
    return (
        f"{file}: lines {one} and {other} give exchange {exchange} two right answers: keep one, or, where what was "
        "asked differs only in what redaction takes out, name the exchange of each"
    )
