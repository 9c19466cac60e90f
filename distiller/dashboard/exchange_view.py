"""Owns one exchange as pages show it: as it went over the wire, and all that was made of it since.

Bodies are shown as they were recorded, which is after redaction; a long one is cut on the page and whole in a file.
Must not know how a page looks, nor interpret what a body says beyond its form.
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from distiller.bundle import MANIFEST
from distiller.holdings import learned
from distiller.replaying import sound
from distiller.settings import Settings
from proxy.bodies import decoded
from proxy.errors import BadInput
from proxy.log import Log
from router.verdicts import SCORE

SHOWN = 60_000  # characters of a body on a page
TURNS, TURN = 60, 8_000  # messages of a conversation, and characters of one
_EVENTS = "text/event-stream"
_VERDICTS = f"""
SELECT ts, candidate, kind, {SCORE}, confidence, covered, answer, latency_ms, error, yardstick, yardstick_answer
FROM verdicts WHERE exchange = ? ORDER BY id
"""
_SPEND = "SELECT ts, kind, model, TRY_CAST(usd AS DOUBLE), quantity, unit FROM spend WHERE exchange = ? ORDER BY ts, id"
_FEEDBACK = "SELECT ts, score, answer, comment FROM feedback WHERE exchange = ?"


@dataclass(frozen=True, slots=True)
class Body:
    """One side's body: `text` as recorded, `pretty` indented where it is JSON or a stream of it.

    `text` is None where none was recorded; `left_out` characters of it are not in here.
    """

    text: str | None
    pretty: str | None
    size: int | None
    headers: tuple[tuple[str, str], ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, as text or as JSON where it is more than that."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One comparison that was made with the exchange."""

    ts: datetime
    candidate: str
    kind: str
    verdict: float | None
    confidence: float | None
    covered: bool
    answer: str | None
    latency_ms: float | None
    error: str | None
    yardstick: float | None
    yardstick_answer: str | None


@dataclass(frozen=True, slots=True)
class Charge:
    """What was paid for the exchange: None is unpriced."""

    ts: datetime
    kind: str
    model: str | None
    usd: float | None
    quantity: float | None
    unit: str | None


@dataclass(frozen=True, slots=True)
class Feedback:
    """What was said of it last."""

    ts: datetime
    score: float | None
    answer: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange with everything that refers to it; `columns` is its row but for the bodies."""

    columns: Mapping[str, Any]
    turns: tuple[Turn, ...]
    request: Body
    response: Body
    verdicts: tuple[Verdict, ...]
    charges: tuple[Charge, ...]
    feedback: tuple[Feedback, ...]
    learned_by: tuple[str, ...]

    @property
    def id(self) -> str:
        """Its own."""
        return str(self.columns["id"])


def exchange(log: Log, settings: Settings, identity: str) -> Exchange:
    """The exchange of this id; BadInput where the log has none."""
    row = recorded(log, identity)
    asked = _plain(row, "request")
    return Exchange(
        columns={name: value for name, value in row.items() if name not in ("request", "response", "logprobs")},
        turns=_turns(asked),
        request=_body(row, "request", asked),
        response=_body(row, "response", _plain(row, "response")),
        verdicts=tuple(Verdict(*one) for one in log.query(_VERDICTS, [identity])),
        charges=tuple(Charge(*one) for one in log.query(_SPEND, [identity])),
        feedback=tuple(Feedback(*one) for one in log.query(_FEEDBACK, [identity])),
        learned_by=tuple(_learned_by(settings.students, identity)),
    )


def recorded(log: Log, identity: str) -> dict[str, Any]:
    """Its row by column; BadInput where the log has none."""
    cursor = log.connection.execute("SELECT * FROM exchanges WHERE id = ? LIMIT 1", [identity])
    names, row = [column[0] for column in cursor.description or ()], cursor.fetchone()
    if row is None:
        raise BadInput(
            f"there is no exchange {identity[:64]!r} in the log: it was not recorded, was erased, or is past retention"
        )
    return dict(zip(names, row, strict=True))


def body_bytes(row: Mapping[str, Any], side: str) -> bytes:
    """The `request` or `response` as it was recorded, byte for byte; BadInput where none was."""
    text = row[side]
    if text is None:
        raise BadInput(f"no {side} of this exchange was recorded")
    return base64.b64decode(text) if row[f"{side}_encoding"] == "base64" else text.encode()


def _plain(row: Mapping[str, Any], side: str) -> str | None:
    text = row[side]
    return None if text is None else decoded(text, row[f"{side}_encoding"] or "utf-8", row[f"{side}_headers"] or "[]")


def _body(row: Mapping[str, Any], side: str, plain: str | None) -> Body:
    headers = tuple((str(name), str(value)) for name, value in json.loads(row[f"{side}_headers"] or "[]"))
    size = row[f"{side}_bytes"]
    if plain is None:
        return Body(None, None, size, headers)
    pretty = _pretty(plain, stream=side == "response" and bool(row["stream"]))
    return Body(plain[:SHOWN], pretty and pretty[:SHOWN], size, headers, max(0, len(plain) - SHOWN))


def _pretty(text: str, stream: bool) -> str | None:
    """Indented, each event of a stream on a line of its own; None where it is neither, or pretty already."""
    if stream:
        events = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
        return "\n".join(map(_one_line, events)) or None
    with suppress(ValueError, RecursionError):
        return sound(json.dumps(json.loads(text), indent=2, ensure_ascii=False))
    return None


def _one_line(event: str) -> str:
    with suppress(ValueError, RecursionError):
        return sound(json.dumps(json.loads(event), ensure_ascii=False))
    return event


def _turns(request: str | None) -> tuple[Turn, ...]:
    """The conversation of a chat's request; empty where it has none that can be read."""
    try:
        messages = json.loads(request or "")["messages"]
        turns = [Turn(sound(str(one.get("role", "?"))[:40]), _said(one)) for one in messages[:TURNS]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()
    left = len(messages) - len(turns)
    return (*turns, Turn("...", f"{left} more messages: see the body")) if left else tuple(turns)


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str) or message.get("tool_calls"):
        rest = {name: value for name, value in message.items() if name != "role"}
        content = json.dumps(rest, indent=1, ensure_ascii=False)
    whole = sound(content)
    return whole if len(whole) <= TURN else f"{whole[:TURN]}\u2026 ({len(whole) - TURN:,} more characters)"


def _learned_by(folder: Path, identity: str) -> list[str]:
    """The students whose weights may remember it, those it came to by the student before included."""
    found = []
    for place in sorted(folder.glob(f"*/{MANIFEST}")):
        with suppress(OSError, ValueError, KeyError):
            if identity in learned(place.parent):
                found.append(place.parent.name)
    return found
