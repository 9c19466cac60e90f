"""Owns the seam between relaying and routing: what a decision may look at, and what it may answer.

Must not know how a decision is reached. `Decide` is a callable so that the proxy never imports the router.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the client asked: path as sent, body as bytes, the task header if there was one."""

    path: str
    body: bytes
    task: str | None


class Flow(Protocol):
    """A candidate's answer under way, decided on already; `close` ends it, however far it has come."""

    def pieces(self) -> AsyncIterator[bytes]:
        """All of it, what was held until now first; CandidateFailed where the candidate dies midway."""
        ...

    def close(self) -> None:
        """Ask the candidate for nothing more; called once."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A candidate's answer, in the wire form the client asked for; `confidence` in [0, 1].

    Complete as `body`; with a `flow`, which whoever gets it has to close, there is no body, and all comes from there.
    """

    content_type: bytes
    body: bytes
    stream: bool
    confidence: float
    flow: Flow | None = None


class CandidateFailed(Exception):
    """The candidate erred, timed out, broke the format or was unsure; the text is the recorded reason.

    `confidence` is set where the candidate answered but was not sure enough.
    """

    def __init__(self, reason: str, confidence: float | None = None) -> None:
        """Keep the reason as the message."""
        super().__init__(reason)
        self.confidence = confidence


@dataclass(frozen=True, slots=True)
class Decision:
    """Which model answers this request, and why; `answer` asks the candidate, None means the teacher."""

    served_by: str
    reason: str
    answer: Callable[[], Awaitable[Answer]] | None = None


Decide = Callable[[Asked], Decision]


def always_teacher(asked: Asked) -> Decision:
    """The decision of a proxy without a router."""
    return Decision(TEACHER, "no router")
