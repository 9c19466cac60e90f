"""Owns the errors a person or a client may see, and their OpenAI envelope.

StillroomError
├── BadInput      the request, file or setting is wrong; the message says what to change
├── Unavailable   something needed is not there now: an upstream, an engine, a port
└── Refused       understood, and declined: no evidence, not permitted

Raised anywhere, translated once: the command line prints one line, the proxy answers with `envelope`.
"""

import json


class StillroomError(Exception):
    """Base of all errors that are shown; the message is one line that says what to do."""


class BadInput(StillroomError):
    """The request, file or setting is wrong."""


class Unavailable(StillroomError):
    """Something needed is not there now."""


class Refused(StillroomError):
    """Understood, and declined."""


def envelope(message: str, kind: str, code: str | None = None) -> bytes:
    """The body of an OpenAI-style error, as the official clients parse it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
