"""Owns taking usage out of streams whose clients did not ask for it.

Must not know who relays the bytes, nor how usage was asked for. What is not about usage stays as it was, byte for byte,
and what cannot be read passes untouched.
"""

import json
import re

from proxy.events import Events, payload
from proxy.splice import Member, spliced, whole_object

_LARGEST = 1 << 20
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
        self._events = Events(largest)
        self._finishes: dict[int, bytes] = {}  # By choice, the event that ends it.

    def feed(self, chunk: bytes) -> bytes:
        """What may go to the client after this chunk."""
        plain = b'"usage"' not in chunk and _FINISH not in chunk and chunk.endswith((b"\n\n", b"\r\n\r\n"))
        if plain and self._events.between and not self._finishes:
            return chunk
        parts = self._events.feed(chunk)
        # Whatever is no event releases what waited.
        return b"".join([self._event(part.data) if part.whole else self._release() + part.data for part in parts])

    def end(self) -> bytes:
        """What is left when the upstream has ended: what waited, and an event that was never completed, as it is."""
        return self._release() + self._events.end()

    def _event(self, event: bytes) -> bytes:
        passed = _without_usage(event)
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
        members, _ = whole_object(payload(event), 0)
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
        match json.loads(payload(event)):
            case {"choices": [{"index": int(index)}]}:
                return index
    except (ValueError, RecursionError):
        pass
    return None


def _with_fingerprint(finish: bytes, usage: bytes) -> bytes:
    """The event that ends a choice with the fingerprint of the one that reports usage, last, where it has none."""
    try:
        moved = {member.key: member for member in whole_object(payload(usage), 0)[0]}.get(_FINGERPRINT)
        members, close = whole_object(payload(finish), 0)
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
