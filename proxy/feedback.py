"""Owns feedback: what a client may say of an answer it got, checked here and answered by Stillroom itself.

Must not know the log. Whether the exchange is there, and is of the same tenant, shows where both are rows: the view
`feedback` of `proxy.migrations` joins them, and reads the receipt, not the request, since that is of our own making.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from proxy import strict_json
from proxy.errors import BadInput, envelope

FEEDBACK = "/v1/feedback"
PATHS = (FEEDBACK, f"{FEEDBACK}/")
STILLROOM = "stillroom"
"""Who served an exchange that neither the teacher nor a candidate answered."""
MOST_BYTES = 1 << 20  # More is no answer of a model, and parsing it would hold up everybody else.
MOST_COMMENT = 2000  # characters
NOT_KEPT = envelope("the feedback could not be stored: send it again later", "server_error", "feedback_not_stored")

_FIELDS = ("exchange", "score", "correct", "answer", "comment")
_EXCHANGE = re.compile("[0-7][0-9A-HJKMNP-TV-Z]{25}")  # A ULID.


@dataclass(frozen=True, slots=True)
class Feedback:
    """Of one exchange: a score in [0, 1] of the answer that was served, the right answer, a comment; or some of it."""

    exchange: str
    score: float | None = None
    answer: str | None = None
    comment: str | None = None


def respond(method: str, identity: str, body: bytes, kept: bool) -> tuple[int, bytes]:
    """Status and body of the answer; `identity` is the feedback's own id, `kept` whether its sender has it recorded."""
    if method != "POST":
        return 405, envelope("feedback is sent with POST", "invalid_request_error", "method_not_allowed")
    if not kept:
        text = "feedback is recorded or it is nothing: send it without x-stillroom-capture, with a key that is recorded"
        return 400, envelope(text, "invalid_request_error", "not_recorded")
    try:
        said = read_feedback(body)
    except BadInput as error:
        return 400, envelope(str(error), "invalid_request_error", "invalid_feedback")
    receipt = {"object": "feedback", "id": identity, **asdict(said)}
    return 200, json.dumps(receipt, ensure_ascii=False).encode()


def read_feedback(body: bytes) -> Feedback:
    """The body, checked: what a reader of the log could not hold or would read otherwise is refused with BadInput."""
    fields = _object(body)
    for name in fields:
        if name not in _FIELDS:
            raise BadInput(_unknown(name))
    exchange = fields.get("exchange")
    if not isinstance(exchange, str) or not _EXCHANGE.fullmatch(exchange):
        raise BadInput("exchange must be the answer's x-stillroom-exchange header, such as 01KAYZ5Q8C4V0M7T2N9R3D6WXH")
    said = Feedback(exchange, _score(fields), _text(fields, "answer"), _text(fields, "comment"))
    if said.score is None and said.answer is None and said.comment is None:
        raise BadInput("nothing is said of the exchange: give score, correct, answer or comment")
    if said.comment is not None and len(said.comment) > MOST_COMMENT:
        raise BadInput(f"comment has {len(said.comment):,} characters: {MOST_COMMENT:,} are kept, so shorten it")
    return said


def named(request: str) -> str | None:
    """The exchange that a body names, whether it was taken or refused; None where nobody can tell."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        exchange = json.loads(request).get("exchange")
        return exchange if isinstance(exchange, str) else None
    return None


def _object(body: bytes) -> Mapping[str, Any]:
    if len(body) > MOST_BYTES:
        raise BadInput(f"the feedback is over {MOST_BYTES >> 20} MB: send the right answer alone")
    try:
        fields = strict_json.read(body)
    except BadInput as error:
        raise BadInput(f"the body is {error}") from None
    if not isinstance(fields, dict):
        raise BadInput('the body must be a JSON object, such as {"exchange": "...", "score": 1}')
    return fields


def _score(fields: Mapping[str, Any]) -> float | None:
    score, correct = fields.get("score"), fields.get("correct")
    if score is not None and correct is not None:
        raise BadInput("score and correct say the same: give one of them")
    if correct is not None:
        if not isinstance(correct, bool):
            raise BadInput("correct must be true or false")
        return float(correct)
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise BadInput("score must be a number from 0 to 1")
    return float(score)


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    text = fields.get(name)
    if text is None:
        return None
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"{name} must be a text that is not empty; JSON goes into it as text")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadInput(f"{name} holds half a character or a NUL, which no log can keep: leave them out")
    return text


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"use {', '.join(_FIELDS)}"
    return f"unknown field {name[:64]!r}: {meant}"
