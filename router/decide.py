"""Owns the decision on the hot path: from a request and the policy in memory to teacher or candidate.

No I/O, no waiting. With no route at all a request is not even parsed. Conversations stick: shares are taken over
conversations, so that one does not change models half-way; those of a smaller share are also of every larger one. Who
is held back is drawn apart from who comes first, so that the teacher's group is like all the others.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from proxy.deciding import TEACHER, Answer, Asked, CandidateFailed, Decision
from proxy.derive import CHAT
from proxy.errors import BadInput
from proxy.tasks import task_of
from router.candidates import CHANGED, answer, teacher_only
from router.early import early
from router.policy import HELD_BACK, PolicyWatcher, Route
from router.prompt import changed

# What reading a client's JSON as a chat request may raise; the teacher is the one to say what is wrong with it.
_SHAPE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadInput)


class Router:
    """The `decide` callable of a worker; `running` must be open while it serves."""

    def __init__(self, watcher: PolicyWatcher) -> None:
        """Follow the watcher's policy."""
        self._watcher = watcher
        self._session: aiohttp.ClientSession | None = None
        self._asking: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the candidate's connections and watch the policy."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, self._watcher.watching():
            self._session = session
            yield
            self._session = None

    def decide(self, asked: Asked) -> Decision:
        """Which model answers, and why."""
        routes = self._watcher.policy.routes
        if not routes or asked.path != CHAT:
            return Decision(TEACHER, "no candidate")
        try:
            body = json.loads(asked.body)
            task = task_of(body, asked.task)
            route = routes.get(task)
            reason = "no candidate for this task" if route is None else teacher_only(body)
            if route is None or reason:
                return Decision(TEACHER, reason or "")
            if changed(body["messages"], frozenset(route.static), route.extra_lines):
                return Decision(TEACHER, f"{route.stage}: {CHANGED}")
            if route.held_back and _position(body["messages"], b"held back") < route.held_back:
                return Decision(TEACHER, f"{route.stage}: {HELD_BACK}")
            if route.share < 1 and _position(body["messages"]) >= route.share:
                return Decision(TEACHER, f"{route.stage}: outside the share")
            if self._asking[route.candidate] >= route.at_once:
                return Decision(TEACHER, f"{route.stage}: candidate busy")
        except _SHAPE_ERRORS:
            return Decision(TEACHER, "unreadable request")
        return Decision(route.candidate, route.stage, lambda: self._ask(route, body))

    async def _ask(self, route: Route, body: Mapping[str, Any]) -> Answer:
        if self._session is None:
            raise CandidateFailed("the router is stopping")
        self._asking[route.candidate] += 1
        flows = False
        try:
            if not (route.first_tokens and body.get("stream") is True):
                return await answer(self._session, route, body)
            sent = await early(self._session, route, body, lambda: self._free(route))
            flows = True  # Whoever closes it frees the candidate.
            return sent
        except _SHAPE_ERRORS:
            raise CandidateFailed("unreadable request") from None
        finally:
            if not flows:
                self._free(route)

    def _free(self, route: Route) -> None:
        self._asking[route.candidate] -= 1


def _position(messages: list[Mapping[str, Any]], draw: bytes = b"") -> float:
    """Where a conversation lies in [0, 1): a hash of everything up to its first user message, another for each draw."""
    opening: list[Any] = []
    for message in messages:
        opening.append(message.get("content"))
        if message.get("role") == "user":
            break
    digest = hashlib.blake2b(json.dumps(opening).encode(), digest_size=8, salt=draw).digest()
    return int.from_bytes(digest) / 2**64
