"""Owns which chat requests also ask the teacher for log-probabilities, how, and of which teachers that may be asked.

Must not know who relays the bytes, nor what becomes of what was told. What is asked for is spliced in, every other byte
as it was; the client never sees that it was. A teacher that refuses is asked again without, before any byte is out,
and then not asked for an hour: by teacher, model and kind of response format, in the memory of one worker.
"""

import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from proxy.answers import UpstreamResponse, held
from proxy.counters import Counters
from proxy.derive import CHAT
from proxy.errors import BadInput
from proxy.exchange import Exchange
from proxy.headers import header
from proxy.splice import body_object, spliced
from proxy.withholding import Taken, Withheld, withheld

ALTERNATIVES = 20  # the most that OpenAI tells
REFUSED_SECONDS = 3600.0
_ASK = b',"logprobs":true,"top_logprobs":%d' % ALTERNATIVES
_MOST_REFUSED = 1000
_PLAIN = "none"
_FORMATS = {"text": _PLAIN, "json_object": "json_object", "json_schema": "json_schema"}
_ASKED_ALREADY = ("logprobs", "top_logprobs")
# With these a teacher has no log-probabilities of a text to tell, or none at all.
_NOT_WITH = ("tools", "functions", "audio", "modalities", "prediction", "web_search_options")
_REFUSES = (400, 500)  # Said of anything; a server that has not thought of the question may break on it, too.
_REFUSES_BY_NAME = (403, 404, 422)


class Kind(NamedTuple):
    """What a refusal holds for; `teacher` names the one that refused, None the usual one."""

    model: str
    response_format: str
    teacher: str | None = None


class Question(NamedTuple):
    """The body as it asks for log-probabilities, and what a refusal of it would hold for."""

    body: bytes
    kind: Kind


def ask_for_logprobs(body: bytes) -> Question | None:
    """The request with `logprobs` and `top_logprobs` at its end; None where nothing may be asked for.

    That is where the client asks for them itself, in whatever way, wants several answers, tools or sound, or sends
    anything but one JSON object in UTF-8.
    """
    try:
        members, close = body_object(body)
    except (ValueError, RecursionError):
        return None
    last = {member.key: member.value for member in members}
    if any(key in last for key in _ASKED_ALREADY) or any(last.get(key) is not None for key in _NOT_WITH):
        return None
    model, response_format, n = last.get("model"), _format(last.get("response_format")), last.get("n")
    if not isinstance(model, str) or response_format is None or (n is not None and (type(n) is not int or n != 1)):
        return None
    return Question(spliced(body, close, close, _ASK), Kind(model, response_format))


def check_share(share: float) -> None:
    """BadInput for what is no share."""
    if not 0 <= share <= 1:
        raise BadInput(f"teacher.logprobs_share must be from 0 (never) to 1 (every chat request), not {share:g}")


def _format(wanted: object) -> str | None:
    """The kind of a response format; None for what is none."""
    if wanted is None:
        return _PLAIN
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    return _FORMATS.get(kind) if isinstance(kind, str) else None


class Asking:
    """One per worker. `translate` are prefixes of models that do not answer in their own bytes."""

    def __init__(
        self,
        share: float,
        translate: Iterable[str],
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`share` of the chat requests, over 0; `clock` counts seconds."""
        self._share, self._translate, self._clock = share, tuple(translate), clock
        self._asked, self._refused, self._stripped = (
            counters.logprobs.labels(word) for word in ("asked", "refused", "stripped")
        )
        self._until: dict[Kind, float] = {}

    def of(self, exchange: Exchange, body: bytes) -> Question | None:
        """What to send in the place of `body`; None where this exchange asks for nothing."""
        if exchange.path != CHAT or exchange.method != "POST" or not exchange.capture or not self._drawn(exchange.id):
            return None
        question = ask_for_logprobs(body)
        if question is None:
            return None
        question = question._replace(kind=question.kind._replace(teacher=exchange.teacher))
        translated = exchange.teacher is None and question.kind.model.startswith(self._translate)
        if translated or not self._may(question.kind):
            return None
        self._asked.inc()
        return question

    async def answer(
        self,
        exchange: Exchange,
        kind: Kind,
        upstream: UpstreamResponse,
        again: Callable[[], Awaitable[UpstreamResponse]],
    ) -> UpstreamResponse:
        """What the client gets of `upstream`, which was asked; `again` sends the request as it would be without.

        Raises what `again` raises; `upstream` is closed, by then or with what is returned.
        """
        if upstream.status == 200:
            return await self._told(exchange, kind, upstream)
        if upstream.status not in _REFUSES + _REFUSES_BY_NAME:
            return upstream
        said = await held(upstream)
        if said.status in _REFUSES_BY_NAME and b"logprobs" not in said.plain:
            return said
        instead = await again()
        if instead.status < 400:
            self._refuse(kind)
        return instead

    async def _told(self, exchange: Exchange, kind: Kind, upstream: UpstreamResponse) -> UpstreamResponse:
        if header(upstream.raw_headers, b"content-encoding") not in (None, b"identity"):
            self._refuse(kind)  # What it was asked not to do: nothing can be taken out.
            return upstream
        self._until.pop(kind, None)
        taken = Taken(self._stripped.inc)
        exchange.logprobs = taken.positions
        if upstream.content_type == "text/event-stream":
            return Withheld(upstream, taken)
        return withheld(await held(upstream), taken)

    def _drawn(self, exchange: str) -> bool:
        """The same answer for the same exchange; independent of other shares that are drawn by its id."""
        return zlib.crc32(b"logprobs" + exchange.encode()) < self._share * (1 << 32)

    def _may(self, kind: Kind) -> bool:
        """Whether it was not refused; once that is long ago, one is tried, and the others still wait for it."""
        until = self._until.get(kind)
        if until is None:
            return True
        if self._clock() < until:
            return False
        self._until[kind] = self._clock() + REFUSED_SECONDS
        return True

    def _refuse(self, kind: Kind) -> None:
        self._refused.inc()
        while len(self._until) >= _MOST_REFUSED:  # Clients name models.
            del self._until[next(iter(self._until))]
        self._until[kind] = self._clock() + REFUSED_SECONDS
