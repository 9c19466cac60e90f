"""Owns taking usage out of streams whose clients did not ask for it.

Must not know who relays the bytes, nor how usage was asked for. What is not about usage stays as it was, byte for byte,
and what cannot be read passes untouched.
"""

import json
import re

from proxy.splice import Member, spliced, whole_object

_LARGEST = 1 << 20
_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_NO_BREAK = re.compile(rb"[^\r\n]")
# As OpenAI writes its chunks: for these no parser is needed.
_USUAL = re.compile(rb'(data: \{[^\r\n]*),"usage":null((?:,"obfuscation":"[^"\\\r\n]*")?\}\n\n)')
# Where vLLM ends a choice, and only there: the reason is a text. Inside of a string the quotes would be escaped.
_FINISH = b'","stop_reason":'
_FINGERPRINT = "system_fingerprint"
_MOST_CHOICES = 128  # As many as OpenAI's `n` may ask for.


class UsageStripper:
    """Takes out of one relayed event stream what asking for usage put in; for one answer only.

    An event is held back until it is complete; one of more than `largest` bytes passes as it comes. vLLM moves its
    fingerprint from where it ends a choice to the usage when that is asked for: what ends a choice waits for it, to
    get the fingerprint back. Only other choices go on meanwhile; anything else releases what waits.
    """

    def __init__(self, largest: int = _LARGEST) -> None:
        """Start at the beginning of a stream."""
        self._largest = largest
        self._held = bytearray()  # The unfinished event; of one that is too large, its last two bytes.
        self._finishes: dict[int, bytes] = {}  # By choice, the event that ends it.
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
        rest = self._release() + self._held[self._sent :]
        self._held.clear()
        return rest

    def _complete(self, event: bytes) -> bytes:
        sent, self._sent = self._sent, 0
        passed = event[sent:] if sent or len(event) > self._largest else _without_usage(event)
        if not passed:
            return self._release(event)
        ends = _FINISH in passed
        choice = _choice(passed) if ends or self._finishes else None
        overtakes = choice is not None and choice not in self._finishes and len(self._finishes) < _MOST_CHOICES
        waited = b"" if overtakes else self._release()
        if ends and choice is not None:
            self._finishes[choice] = passed
            return waited
        return waited + passed

    def _after_finishes(self, following: bytes | bytearray) -> bytes:
        """Whatever else comes releases what waited; nothing does not."""
        return self._release() + following if following else b""

    def _release(self, usage: bytes = b"") -> bytes:
        """What waited, each with the fingerprint of `usage`."""
        waited = b"".join(_with_fingerprint(finish, usage) if usage else finish for finish in self._finishes.values())
        self._finishes.clear()
        return waited


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
        members, _ = whole_object(_payload(event), 0)
    except (ValueError, RecursionError):
        return event
    last = {member.key: member.value for member in members}
    if last.get("error") is not None:
        return event
    if last.get("usage") is not None:
        return event if last.get("choices") else b""
    return _cut(event, members)


def _choice(event: bytes) -> int | None:
    """The index of the one choice that the event is about."""
    try:
        match json.loads(_payload(event)):
            case {"choices": [{"index": int(index)}]}:
                return index
    except (ValueError, RecursionError):
        pass
    return None


def _with_fingerprint(finish: bytes, usage: bytes) -> bytes:
    """The event that ends a choice with the fingerprint of the one that reports usage, last, where it has none."""
    try:
        moved = {member.key: member for member in whole_object(_payload(usage), 0)[0]}.get(_FINGERPRINT)
        members, close = whole_object(_payload(finish), 0)
    except (ValueError, RecursionError):
        return finish
    if moved is None or any(member.key == _FINGERPRINT for member in members):
        return finish
    return spliced(finish, close, close, b',"%s":%s' % (_FINGERPRINT.encode(), usage[moved.at : moved.end]))


def _cut(event: bytes, members: list[Member]) -> bytes:
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
