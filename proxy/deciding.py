"""Owns the seam between relaying and routing: what a decision may look at, and what it may answer.

Must not know how a decision is reached. `Decide` is a callable so that the proxy never imports the router.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the client asked: path as sent, body as bytes, the task header if there was one."""

    path: str
    body: bytes
    task: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A candidate's complete answer, in the wire form the client asked for; `confidence` in [0, 1]."""

    content_type: bytes
    body: bytes
    stream: bool
    confidence: float


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
