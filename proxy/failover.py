"""Owns several deployments of one teacher: which is asked, and what is asked again before the first byte of an answer.

Must not read a body, nor touch an answer once it is handed on. The first deployment of the file is preferred, so that
the provider's prompt cache stays warm; the next one is asked at once when it fails, is resting, or its circuit is open.
When nothing helps, the client gets the last answer as it came, or the last error.

What can be paid twice. Never: a request that was not sent (refused, DNS, TLS, connect timeout), or that was declined
(429, 503, 529); these may be asked again anywhere. Rarely: a 500, 502 or 504 may hide work that was done, and is asked
again on another deployment only. Too easily: a POST whose connection broke or fell silent before the answer's head;
that is not asked again, not even when a kept-alive connection was about to close (GET and HEAD are).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from proxy.breaker import Breaker, State
from proxy.client import Response, UpstreamBroke, UpstreamSilent
from proxy.headers import Headers
from proxy.retrying import backoff, retry_after
from proxy.upstream import Teacher

GIVE_UP = 30.0  # seconds after a request came, no retry begins; a rest of breaker.LONGEST_PAUSE is beyond that

_DECLINED = (429, 503, 529)
_ONLY_ELSEWHERE = (500, 502, 504)
_REPEATABLE = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Health:
    """How one deployment looks to this worker; `failures` since its start."""

    deployment: str
    state: State
    failures: int


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """One place that answers the teacher's models."""

    name: str
    teacher: Teacher
    breaker: Breaker


@dataclass(slots=True)
class _Trial:
    """What one request has been through."""

    until: float
    retries: int
    asked: list[Deployment] = field(default_factory=list)
    barred: list[Deployment] = field(default_factory=list)
    answer: Response | None = None
    error: OSError | None = None

    def end(self) -> Response:
        """The last answer, no longer ours to close; raises the last error where there is none."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.attempts = len(self.asked)
            return answer
        assert self.error is not None
        raise self.error

    def take(self, answer: Response | None) -> None:
        """Hold this answer, and give up the one before."""
        if self.answer is not None:
            self.answer.close()
        self.answer = answer


class Failover:
    """An upstream made of deployments; every one of them is asked before a request is retried."""

    def __init__(
        self,
        deployments: Sequence[Deployment],
        retries: int,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """At least one deployment, in order of preference; `retries` are asked for after a pause, see `backoff`."""
        self._deployments, self._retries = deployments, retries
        self._now, self._sleep, self._draw = now, sleep, draw

    async def forward(self, method: str, target: str, headers: Headers, body: bytes) -> Response:
        """Send the request until there is an answer to pass on. Raises OSError, TimeoutError: the last attempt's."""
        trial = _Trial(self._now() + GIVE_UP, self._retries)
        try:
            while (deployment := await self._next(trial)) is not None:
                trial.asked.append(deployment)
                deployment.breaker.asked(self._now())
                try:
                    answer = await deployment.teacher.forward(method, target, headers, body)
                except OSError as error:
                    trial.error = error
                    deployment.breaker.failed(self._now())
                    again = method in _REPEATABLE or not isinstance(error, UpstreamBroke | UpstreamSilent)
                else:
                    again = self._judge(trial, deployment, answer)
                if not again:
                    break
            return trial.end()
        finally:
            trial.take(None)

    def health(self) -> tuple[Health, ...]:
        """A snapshot, in order of preference."""
        return tuple(Health(each.name, each.breaker.state, each.breaker.failures) for each in self._deployments)

    def close(self) -> None:
        """Close all connections."""
        for deployment in self._deployments:
            deployment.teacher.close()

    async def _next(self, trial: _Trial) -> Deployment | None:
        """Whom to ask now, after a pause where one is due; None when it is time to stop."""
        now = self._now()
        fresh = [each for each in self._deployments if each not in trial.asked]
        for each in fresh:
            if each.breaker.ready_at <= now:
                return each
        if fresh and trial.answer is None:  # Nothing to pass on but an error of ours: the least bad one might answer.
            return min(fresh, key=lambda each: each.breaker.ready_at)
        left = [each for each in self._deployments if each not in trial.barred]
        if not left or not trial.retries:
            return None
        soonest = min(left, key=lambda each: (max(now, each.breaker.ready_at), trial.asked.count(each)))
        pause = max(0.0, soonest.breaker.ready_at - now) + backoff(self._retries - trial.retries, self._draw())
        if now + pause > trial.until:
            return None
        trial.retries -= 1
        await self._sleep(pause)
        return soonest

    def _judge(self, trial: _Trial, deployment: Deployment, answer: Response) -> bool:
        """Hold the answer; whether a better one may be looked for."""
        answer.deployment = deployment.name
        trial.take(answer)
        now = self._now()
        if answer.status >= 500:
            deployment.breaker.failed(now)
        else:
            deployment.breaker.succeeded()
        if answer.status in _DECLINED:
            rest = retry_after(answer.raw_headers, time.time())
            if rest is not None:
                deployment.breaker.rest(now, rest)
            return True
        trial.barred.append(deployment)
        return answer.status in _ONLY_ELSEWHERE
