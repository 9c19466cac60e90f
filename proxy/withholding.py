"""Owns taking log-probabilities out of answers whose clients did not ask for them, and what was taken.

Must not know how they were asked for, nor what becomes of them. OpenAI and vLLM say `"logprobs":null` of each choice
when they are not asked, in streams and in plain answers: so does what is left, and every other byte is as it was. A
server that leaves the member out then is seen to say null. What cannot be read passes untouched.
"""

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

from proxy.answers import Held, UpstreamResponse
from proxy.events import Events, payload
from proxy.headers import without
from proxy.logprobs import Position, positions
from proxy.splice import Member, items_at, object_at, value_at, whole_object

_LARGEST = 1 << 24  # A server may send thousands of tokens in one event, each with a kilobyte of probabilities.
_KEY = b'"logprobs"'
_NULL = b"null"


class Taken:
    """What was taken out of one answer: the positions it told; `first` is called once, where there is anything.

    Where one piece cannot be read there are none, as the others would be taken for neighbours.
    """

    def __init__(self, first: Callable[[], None]) -> None:
        """Nothing yet."""
        self.positions: list[Position] = []
        self._first, self._any, self._spoiled = first, False, False

    def take(self, logprobs: list[Any]) -> None:
        """The values of one piece."""
        if logprobs and not self._any:
            self._any = True
            self._first()
        if self._spoiled:
            return
        try:
            self.positions += [position for one in logprobs for position in positions(one)]
        except ValueError:
            self.spoil()

    def spoil(self) -> None:
        """Something was not read."""
        self._spoiled = True
        self.positions.clear()


class LogprobsStripper:
    """Takes them out of one relayed event stream; an event is held back until it is complete.

    One of more than `largest` bytes passes as it comes.
    """

    def __init__(self, taken: Taken, largest: int = _LARGEST) -> None:
        """Start at the beginning of a stream."""
        self._taken, self._events = taken, Events(largest)

    def feed(self, chunk: bytes) -> bytes:
        """What may go on after this chunk."""
        if _KEY not in chunk and self._events.between and chunk.endswith((b"\n\n", b"\r\n\r\n")):
            return chunk
        return b"".join([self._part(*part) for part in self._events.feed(chunk)])

    def end(self) -> bytes:
        """What is left when the upstream has ended."""
        rest = self._events.end()
        if rest:
            self._taken.spoil()
        return rest

    def _part(self, data: bytes, whole: bool) -> bytes:
        if not whole:
            if not data.isspace():
                self._taken.spoil()
            return data
        if _KEY not in data:
            return data
        try:
            members, _ = whole_object(payload(data), 0, _READERS)
        except (ValueError, RecursionError):
            self._taken.spoil()
            return data
        told = _told(members)
        self._taken.take([member.value for member in told])
        return b"" if told and _says_nothing_else(members) else _reset(data, told)


class Withheld:
    """An event stream less what was taken; without a length, as nobody can know it yet."""

    def __init__(self, upstream: UpstreamResponse, taken: Taken) -> None:
        """`upstream` is closed with this one."""
        self.status, self.content_type = upstream.status, upstream.content_type
        self.raw_headers = tuple(without(upstream.raw_headers, b"content-length"))
        self.deployment, self.attempts = upstream.deployment, upstream.attempts
        self._upstream, self._stripper = upstream, LogprobsStripper(taken)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The stream as it comes; what came before it broke off is not lost."""
        try:
            async for chunk in self._upstream.pieces():
                passed = self._stripper.feed(chunk)
                if passed:
                    yield passed
        except OSError:
            rest = self._stripper.end()
            if rest:
                yield rest
            raise
        rest = self._stripper.end()
        if rest:
            yield rest

    def close(self) -> None:
        """Give the answer up."""
        self._upstream.close()


def withheld(answer: Held, taken: Taken) -> Held:
    """A whole answer less what was taken, with its length; of one that broke off there is nothing to show."""
    if answer.error is not None:
        return dataclasses.replace(answer, body=b"")
    try:
        members, _ = whole_object(answer.body.decode("latin-1"), 0, _READERS)
    except (ValueError, RecursionError):
        return answer
    told = _told(members)
    taken.take([member.value for member in told])
    body = _reset(answer.body, told)
    length = b"%d" % len(body)
    headers = [(name, length if name.lower() == b"content-length" else value) for name, value in answer.raw_headers]
    return dataclasses.replace(answer, body=body, raw_headers=tuple(headers))


def _choices(text: str, at: int) -> tuple[Any, int]:
    return items_at(text, at, _choice) if text.startswith("[", at) else value_at(text, at)


def _choice(text: str, at: int) -> tuple[Any, int]:
    """The members of a choice, where it is one."""
    if not text.startswith("{", at):
        return value_at(text, at)
    members, close = object_at(text, at)
    return members, close + 1


_READERS = {"choices": _choices}


def _told(members: list[Member]) -> list[Member]:
    """The `logprobs` of all choices, in their order, that are more than null."""
    return [
        member
        for choice in _all_choices(members)
        for member in choice
        if member.key == "logprobs" and member.value is not None
    ]


def _all_choices(members: list[Member]) -> list[list[Member]]:
    lists = [member.value for member in members if member.key == "choices" and isinstance(member.value, list)]
    return [choice for one in lists for choice in one if isinstance(choice, list)]


def _says_nothing_else(members: list[Member]) -> bool:
    """Whether an event is there for its log-probabilities only: vLLM sends such ones for tokens that a parser holds."""
    for choice in _all_choices(members):
        last = {member.key: member.value for member in choice}
        if last.get("delta") != {} or last.get("finish_reason") is not None:
            return False
    return True


def _reset(data: bytes, told: list[Member]) -> bytes:
    parts, at = [], 0
    for member in told:
        parts += [data[at : member.at], _NULL]
        at = member.end
    return b"".join((*parts, data[at:]))
