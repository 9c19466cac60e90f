"""Owns taking a relayed event stream apart: events as soon as they are whole, and what is between them.

Must not know what events say. However a stream is cut, its parts put together are the stream, byte for byte.
"""

import re
from typing import NamedTuple

_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_NO_BREAK = re.compile(rb"[^\r\n]")


class Part(NamedTuple):
    """Some bytes of a stream; `whole`: one event with the blank line that ends it."""

    data: bytes
    whole: bool


class Events:
    """Takes one stream apart. An event of more than `largest` bytes is never whole, and is not held back either."""

    def __init__(self, largest: int) -> None:
        """Start at the beginning of a stream."""
        self._largest = largest
        self._held = bytearray()  # The unfinished event; of one that is too large, its last two bytes.
        self._sent = 0  # How many of the held bytes are out already: more than none in a too large event only.

    @property
    def between(self) -> bool:
        """Whether nothing is held: the next byte begins an event, or stands between two."""
        return not self._held

    def feed(self, chunk: bytes) -> list[Part]:
        """What is ready after this chunk."""
        held, ready = self._held, []
        at, look = 0, max(len(held) - 2, 0)  # An end may have begun in the last two bytes.
        held += chunk
        while True:
            if not self._sent:
                first = _NO_BREAK.search(held, at)
                start = first.start() if first else len(held)
                if start > at:
                    ready.append(Part(bytes(held[at:start]), False))
                at = start
            end = _BLANK_LINE.search(held, max(at, look))
            if end is None:
                break
            ready.append(self._complete(bytes(held[at : end.end()])))
            at = end.end()
        del held[:at]
        if self._sent or len(held) > self._largest:
            if len(held) > self._sent:
                ready.append(Part(bytes(held[self._sent :]), False))
            del held[:-2]
            self._sent = len(held)
        return ready

    def end(self) -> bytes:
        """What is left when the stream has ended: of an event that was never completed."""
        rest = bytes(self._held[self._sent :])
        self._held.clear()
        return rest

    def _complete(self, event: bytes) -> Part:
        sent, self._sent = self._sent, 0
        return Part(event[sent:], not sent and len(event) <= self._largest)


def payload(event: bytes) -> str:
    """The event's data at the positions it has in the event: whatever else is there becomes white space.

    JSON in several `data:` lines can thus be read. A string cannot go over two of them: the break stays, and no JSON
    string holds one.
    """
    lines = event.splitlines(keepends=True)
    data = (b"     " + line[5:] if line.startswith(b"data:") else b"\n" * len(line) for line in lines)
    return b"".join(data).decode("latin-1")
