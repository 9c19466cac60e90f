"""Owns usage in streams for clients that did not ask for it: asked for on the way up, taken out again on the way down.

Must not know who relays the bytes. Both ways are splices: what is not about usage stays as it was, byte for byte, and
what cannot be read passes untouched.
"""

import codecs
import json
import re
from typing import NamedTuple

_ASK = b'"include_usage":true'
_ASK_OPTIONS = b'{"include_usage":true}'
_LARGEST = 1 << 20
_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_NO_BREAK = re.compile(rb"[^\r\n]")
# As OpenAI writes its chunks: for these no parser is needed.
_USUAL = re.compile(rb'(data: \{[^\r\n]*),"usage":null((?:,"obfuscation":"[^"\\\r\n]*")?\}\n\n)')
# What stands before a value of an object: the brace or comma, the key, the colon.
_BEFORE = r'[ \t\n\r]*%s[ \t\n\r]*("[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*")[ \t\n\r]*:[ \t\n\r]*'
_FIRST = re.compile(_BEFORE % r"\{")
_FURTHER = re.compile(_BEFORE % ",")
# Where vLLM ends a choice, and only there: the reason is a text. Inside of a string the quotes would be escaped.
_FINISH = b'","stop_reason":'
_FINGERPRINT = "system_fingerprint"
_EMPTY = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*\}")
_CLOSE = re.compile(r"[ \t\n\r]*\}")
_value_at = json.JSONDecoder().raw_decode


class _Member(NamedTuple):
    """One `key: value` of an object; `before` matched up to the value, `end` is where that ends."""

    key: str
    value: object
    before: re.Match[str]
    end: int

    @property
    def at(self) -> int:
        """Where the value starts."""
        return self.before.end()


def ask_for_usage(body: bytes) -> bytes | None:
    """The request with `stream_options.include_usage` true, or None where there is nothing to inject.

    Nothing is injected unless it is a stream that does not report usage yet; options of a wrong type are the
    teacher's to refuse. Of a key given twice the last counts, as it does for JSON parsers.
    """
    if b'"stream"' not in body:
        return None
    try:
        body.decode()  # Only to refuse what is not UTF-8.
        text = body.decode("latin-1")  # One character a byte: positions are those of the body.
        members, close = _whole_object(text, len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0)
        last = {member.key: member for member in members}
        if "stream" not in last or last["stream"].value is not True:
            return None
        options = last.get("stream_options")
        if options is None:
            return _put(body, close, close, b',"stream_options":' + _ASK_OPTIONS)
        if options.value is None:
            return _put(body, options.at, options.end, _ASK_OPTIONS)
        return _ask_in(body, text, options) if isinstance(options.value, dict) else None
    except (ValueError, RecursionError):
        return None


def _ask_in(body: bytes, text: str, options: _Member) -> bytes | None:
    members, close = _object(text, options.at)
    asked = {member.key: member for member in members}.get("include_usage")
    if asked is None:
        return _put(body, close, close, b"," + _ASK if members else _ASK)
    if asked.value is None or asked.value is False:
        return _put(body, asked.at, asked.end, b"true")
    return None


def _put(body: bytes, start: int, end: int, new: bytes) -> bytes:
    return b"".join((body[:start], new, body[end:]))


class UsageStripper:
    """Takes out of one relayed event stream what asking for usage put in; for one answer only.

    An event is held back until it is complete; one of more than `largest` bytes passes as it comes. vLLM moves its
    fingerprint from where it ends a choice to the usage when that is asked for, and sends that next: the last such
    events wait for it, to get the fingerprint back.
    """

    def __init__(self, largest: int = _LARGEST) -> None:
        """Start at the beginning of a stream."""
        self._largest = largest
        self._held = bytearray()  # The unfinished event; of one that is too large, its last two bytes.
        self._finishes: list[bytes] = []  # The events that end choices, while nothing else followed.
        self._sent = 0  # How many of the held bytes are out already: more than none in a too large event only.

    def feed(self, chunk: bytes) -> bytes:
        """What may go to the client after this chunk."""
        held = self._held
        plain = b'"usage"' not in chunk and _FINISH not in chunk and chunk.endswith((b"\n\n", b"\r\n\r\n"))
        if plain and not held and not self._finishes:
            return chunk
        ready: list[bytes | bytearray] = []
        at, look = 0, max(len(held) - 2, 0)  # An end may have begun in the last two bytes.
        held += chunk
        while True:
            if not self._sent:
                first = _NO_BREAK.search(held, at)
                start = first.start() if first else len(held)
                ready.append(self._after_finishes(held[at:start]))
                at = start
            end = _BLANK_LINE.search(held, max(at, look))
            if end is None:
                break
            ready.append(self._complete(bytes(held[at : end.end()])))
            at = end.end()
        del held[:at]
        if self._sent or len(held) > self._largest:
            ready.append(self._after_finishes(held[self._sent :]))
            del held[:-2]
            self._sent = len(held)
        return b"".join(ready)

    def end(self) -> bytes:
        """What is left when the upstream has ended: what waited, and an event that was never completed, as it is."""
        rest = self._after_finishes(self._held[self._sent :]) or b"".join(self._finishes)
        self._finishes.clear()
        self._held.clear()
        return rest

    def _complete(self, event: bytes) -> bytes:
        sent, self._sent = self._sent, 0
        passed = event[sent:] if sent or len(event) > self._largest else _without_usage(event)
        if not passed:
            passed = b"".join(_with_fingerprint(finish, event) for finish in self._finishes)
            self._finishes.clear()
            return passed
        if _FINISH in passed:
            self._finishes.append(passed)
            return b""
        return self._after_finishes(passed)

    def _after_finishes(self, following: bytes | bytearray) -> bytes:
        """Whatever else comes releases what waited; nothing does not."""
        if not following:
            return b""
        passed = b"".join((*self._finishes, following))
        self._finishes.clear()
        return passed


def _without_usage(event: bytes) -> bytes:
    """The event less its empty usage; nothing where usage is all it was sent for.

    Usage beside choices is what some servers send unasked, and stays.
    """
    if b'"usage"' not in event:
        return event
    usual = _USUAL.fullmatch(event)
    if usual is not None:  # The last brace closes the object itself, so what ends there is a member of it.
        return b"".join(usual.groups())
    try:
        members, _ = _whole_object(_payload(event), 0)
    except (ValueError, RecursionError):
        return event
    last = {member.key: member.value for member in members}
    if last.get("error") is not None:
        return event
    if last.get("usage") is not None:
        return event if last.get("choices") else b""
    return _cut(event, members)


def _with_fingerprint(finish: bytes, usage: bytes) -> bytes:
    """The event that ends a choice with the fingerprint of the one that reports usage, last, where it has none."""
    try:
        moved = {member.key: member for member in _whole_object(_payload(usage), 0)[0]}.get(_FINGERPRINT)
        members, close = _whole_object(_payload(finish), 0)
    except (ValueError, RecursionError):
        return finish
    if moved is None or any(member.key == _FINGERPRINT for member in members):
        return finish
    return _put(finish, close, close, b',"%s":%s' % (_FINGERPRINT.encode(), usage[moved.at : moved.end]))


def _cut(event: bytes, members: list[_Member]) -> bytes:
    """Remove the usage members, each with the comma that came with it: the one before, of the first the one after."""
    parts, at, first = [], 0, True
    for member, after in zip(members, [*members[1:], None], strict=True):
        if member.key != "usage":
            first = False
            continue
        parts.append(event[at : member.before.start(1 if first else 0)])
        at = after.before.start(1) if first and after else member.end
    return b"".join((*parts, event[at:]))


def _payload(event: bytes) -> str:
    """The event's data at the positions it has in the event: whatever else is there becomes white space.

    JSON in several `data:` lines can thus be read. A string cannot go over two of them: the break stays, and no JSON
    string holds one.
    """
    lines = event.splitlines(keepends=True)
    data = (b"     " + line[5:] if line.startswith(b"data:") else b"\n" * len(line) for line in lines)
    return b"".join(data).decode("latin-1")


def _whole_object(text: str, start: int) -> tuple[list[_Member], int]:
    """As `_object`; ValueError also where anything follows the object."""
    members, close = _object(text, start)
    if text[close + 1 :].strip(" \t\n\r"):
        raise ValueError("more than one JSON value")
    return members, close


def _object(text: str, start: int) -> tuple[list[_Member], int]:
    """The members of the JSON object at `start`, and where its closing brace is.

    Raises ValueError for what is no JSON object, RecursionError where it is nested too deeply.
    """
    members: list[_Member] = []
    before, end = _FIRST.match(text, start), start
    while before is not None:
        key = before[1]
        value, end = _value_at(text, before.end())
        members.append(_Member(_value_at(key)[0] if "\\" in key else key[1:-1], value, before, end))
        before = _FURTHER.match(text, end)
    close = (_CLOSE if members else _EMPTY).match(text, end)
    if close is None:
        raise ValueError("not a JSON object")
    return members, close.end() - 1
