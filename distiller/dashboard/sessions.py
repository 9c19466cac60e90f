"""Owns who is logged in: sessions in signed cookies, the tokens that forms carry, and what a session is told once.

Must not know pages, nor how a cookie travels. The key is made when the process starts: with it, all sessions end.
"""

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

VIEWER, OPERATOR = "viewer", "operator"
NOBODY = ""  # The role of who has yet to log in.
HOURS = 12.0
_MOST_NOTES = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """One browser's; `until` is in seconds of the epoch."""

    id: str
    role: str
    until: float


class Sessions:
    """Used by all threads of one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """With a key nobody else ever knows."""
        self._key, self._clock, self._lock = secrets.token_bytes(32), clock, threading.Lock()
        self._ended: dict[str, float] = {}
        self._notes: OrderedDict[str, str] = OrderedDict()

    def start(self, role: str) -> Session:
        """A new session; its id was never seen before, so that nobody can have planted it."""
        return Session(secrets.token_urlsafe(16), role, self._clock() + HOURS * 3600)

    def cookie(self, session: Session) -> str:
        """What the browser keeps of it."""
        told = json.dumps([session.id, session.role, session.until]).encode()
        return f"{_packed(told)}.{_packed(self._sign(b'cookie', told))}"

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie that was made here, has not expired and was not ended; None for any other."""
        told, _, sign = cookie.partition(".")
        try:
            content, given = _unpacked(told), _unpacked(sign)
        except ValueError:
            return None
        if not hmac.compare_digest(self._sign(b"cookie", content), given):
            return None
        session = Session(*json.loads(content))
        with self._lock:
            ended = session.id in self._ended
        return None if ended or session.until <= self._clock() else session

    def end(self, session: Session) -> None:
        """From now on its cookie is worth nothing."""
        now = self._clock()
        with self._lock:
            self._ended = {each: until for each, until in self._ended.items() if until > now}
            self._ended[session.id] = session.until

    def form_token(self, session: Session) -> str:
        """What every form of this session has to carry."""
        return self._sign(b"form", session.id.encode()).hex()

    def carries(self, session: Session, token: str) -> bool:
        """Whether this is that token."""
        return hmac.compare_digest(self.form_token(session).encode(), token.encode("utf-8", "surrogatepass"))

    def tell(self, session: Session, note: str) -> None:
        """Something its next page says, once."""
        with self._lock:
            self._notes[session.id] = note
            while len(self._notes) > _MOST_NOTES:
                self._notes.popitem(last=False)

    def told(self, session: Session) -> str:
        """What there is to say, and no more from now on; "" for nothing."""
        with self._lock:
            return self._notes.pop(session.id, "")

    def _sign(self, what: bytes, content: bytes) -> bytes:
        return hmac.digest(self._key, what + b":" + content, hashlib.sha256)


def _packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _unpacked(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
