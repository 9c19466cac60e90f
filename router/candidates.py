"""Owns asking a candidate: the request it gets, the confidence of its answer, the checks before it may go out.

The same function serves shadow and live traffic, so that what was judged is what is served. Must not decide whether a
candidate is asked at all. A student is shown what varies, and says how sure it is. A hosted model reads the client's
own messages and says nothing of that kind, so that all its well-formed answers are certified together: it counts as
sure. Only OpenAI-compatible ones are spoken to.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.deciding import Answer, CandidateFailed
from proxy.errors import BadInput
from proxy.ids import ulid
from router.calibration import apply
from router.confidence import confidence, first
from router.evaluators import well_formed
from router.policy import Route
from router.prompt import changed, student_messages
from router.said import Said

# What a narrow text student cannot do as the teacher would; such requests stay with the teacher.
_TEACHER_ONLY = ("tools", "functions", "logprobs", "top_logprobs", "audio", "stop", "logit_bias", "web_search_options")
# What a hosted model is told of a request beside its messages; whose user asks is not its business.
_PASSED_ON = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "response_format", "seed", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip
# Reasons that others tell apart: how a fallback begins in the log.
UNREACHABLE, UNSURE, MALFORMED = "candidate unreachable", "unsure", "answer breaks the format"
UNAVAILABLE = "provider unavailable"  # Of a hosted model: it says nothing about the exchange. Live it is a failure.
CUT_OFF = "candidate stopped with"
TIMED_OUT, UNREADABLE = "candidate timed out", "candidate's answer is not a chat completion"
TOO_LONG = "answer is longer than the client allows"
_UNAVAILABLE = (401, 402, 403, 404, 408, 429)  # And all from 500 on.
EVENTS = b"text/event-stream; charset=utf-8"
CHANGED = "template changed"  # As a decision's reason ends, and a verdict's error.
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
ENDED = ("stop", "length")  # How an answer may end that nothing is checked of but its first tokens.
# What reading a message or an answer of another shape than expected may raise.
SHAPE_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, BadInput)


@dataclass(frozen=True, slots=True)
class Reply:
    """A candidate's answer before any check; `confidence` in [0, 1], calibrated where the candidate is.

    `usage` is the client's to see, None where the provider told none. `finish` is why the answer ended.
    """

    text: str
    confidence: float
    usage: Mapping[str, Any] | None
    finish: str = "stop"


def teacher_only(body: Mapping[str, Any]) -> str | None:
    """Why this request is not for a candidate, or None."""
    for key in _TEACHER_ONLY:
        if body.get(key):
            return f"asks for {key}"
    if body.get("n") not in (None, 1):
        return "asks for several choices"
    limit = _limit(body)
    if limit is not None and not (isinstance(limit, int) and limit > 0):
        return "sets a limit of tokens that is none"
    return None


async def ask(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    """Ask for one answer, a student greedily and for its tokens' probabilities; CandidateFailed when it errs.

    That it is cut off is a failure of a student here, unless its first tokens decide, and of a hosted model in `check`,
    as that answer is paid for.
    """
    return await (_ask_hosted if route.model else _ask_student)(session, route, body)


async def _ask_student(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    url, payload = student_request(route, body)
    status, raw = await _post(session, route, url, payload, {}, UNREACHABLE)
    refuse_status(status)
    return _reply(raw, route)


def student_request(route: Route, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a student is asked, and what: greedily, and for its tokens' probabilities."""
    return f"{route.url}/v1/chat/completions", {
        "model": route.candidate,
        "messages": _messages(route, body),
        "temperature": 0,
        "max_tokens": route.max_tokens,
        "logprobs": True,
    }


def refuse_status(status: int) -> None:
    """CandidateFailed where a student's engine gave no answer."""
    if status >= 500:
        raise CandidateFailed(f"{UNREACHABLE}: HTTP {status}")  # As an engine that dies says it.
    if status != 200:
        raise CandidateFailed(f"candidate answered {status}")


async def _ask_hosted(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Reply:
    if not body.get("messages"):
        raise CandidateFailed("unreadable request")
    payload = {key: body[key] for key in _PASSED_ON if body.get(key) is not None}
    payload |= {"model": route.model, "messages": body["messages"]}
    headers = _authorization(route.key_env)
    status, raw = await _post(session, route, f"{route.url}/chat/completions", payload, headers, UNAVAILABLE)
    if status >= 500 or status in _UNAVAILABLE:
        raise CandidateFailed(f"{UNAVAILABLE}: HTTP {status}")
    if status != 200:
        raise CandidateFailed(f"candidate answered {status}")
    return _hosted_reply(raw)


async def _post(
    session: aiohttp.ClientSession,
    route: Route,
    url: str,
    payload: Mapping[str, Any],
    headers: Mapping[str, str],
    gone: str,
) -> tuple[int, bytes]:
    """Status and body; a redirect is not followed, or a key would go where nobody sent it."""
    timeout = aiohttp.ClientTimeout(total=route.timeout)
    with reaching(gone):
        async with session.post(url, json=payload, headers=headers, timeout=timeout, allow_redirects=False) as response:
            return response.status, await response.read()


@contextlib.contextmanager
def reaching(gone: str) -> Iterator[None]:
    """CandidateFailed for what a connection may raise: that time is over, or who is asked `gone`."""
    try:
        yield
    except TimeoutError:
        raise CandidateFailed(TIMED_OUT) from None
    except (aiohttp.ClientError, OSError) as error:
        raise CandidateFailed(f"{gone}: {type(error).__name__}") from None


def _authorization(key_env: str) -> dict[str, str]:
    """The header with the key, read from the environment each time: it is kept nowhere."""
    if not key_env:
        return {}
    key = os.environ.get(key_env, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise CandidateFailed(f"{UNAVAILABLE}: there is no key in {key_env}")
    return {"authorization": f"Bearer {key}"}


def check(route: Route, reply: Reply) -> None:
    """Refuse an answer that is cut off, breaks the format or is less sure than what was certified: CandidateFailed.

    Where its first tokens decide, only how sure they are: what follows has gone out before anybody could look at it.
    """
    if not route.first_tokens:
        if reply.finish != "stop":
            raise CandidateFailed(f"{CUT_OFF} {reply.finish}")
        if not well_formed(route.evaluator, Said(reply.text), frozenset(route.labels)):
            raise CandidateFailed(MALFORMED, reply.confidence)
    refuse_unsure(route, reply.confidence)


def refuse_unsure(route: Route, sure: float) -> None:
    """CandidateFailed where the confidence is less than what was certified."""
    if route.threshold is not None and sure < route.threshold:
        raise CandidateFailed(UNSURE, sure)


async def answer(session: aiohttp.ClientSession, route: Route, body: Mapping[str, Any]) -> Answer:
    """The candidate's checked answer in the wire form the client asked for; CandidateFailed before any byte is out."""
    reply = await ask(session, route, body)
    limit = client_limit(body)
    tokens = (reply.usage or {}).get("completion_tokens")
    if limit is not None and isinstance(tokens, int) and tokens > limit:
        raise CandidateFailed(TOO_LONG, reply.confidence)
    check(route, reply)
    head = new_head(route, body)
    if body.get("stream") is not True:
        return Answer(b"application/json", _plain(head, reply), False, reply.confidence)
    return Answer(EVENTS, _events(head, reply, wants_usage(body)), True, reply.confidence)


def client_limit(body: Mapping[str, Any]) -> int | None:
    """Tokens the client allows an answer; None: as many as there are."""
    limit = _limit(body)
    return limit if isinstance(limit, int) else None


def _limit(body: Mapping[str, Any]) -> Any:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def new_head(route: Route, body: Mapping[str, Any]) -> dict[str, Any]:
    """What all parts of an answer begin with; the model is the one that was asked for."""
    return {"id": f"chatcmpl-{ulid()}", "created": int(time.time()), "model": body.get("model", route.candidate)}


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether the client of a stream wants its usage."""
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _messages(route: Route, body: Mapping[str, Any]) -> list[dict[str, str]]:
    try:
        lines = frozenset(route.static)
        other, messages = changed(body["messages"], lines, route.extra_lines), student_messages(body["messages"], lines)
    except SHAPE_ERRORS:
        raise CandidateFailed("the request holds more than text") from None
    if other:
        raise CandidateFailed(CHANGED)
    return messages


def _reply(raw: bytes, route: Route) -> Reply:
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        finish = choice["finish_reason"]
        if finish not in (ENDED if route.first_tokens else ("stop",)):
            raise CandidateFailed(f"{CUT_OFF} {finish}")
        logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return Reply(text, how_sure(route, logprobs), counts(body.get("usage")), finish)
    except SHAPE_ERRORS:
        raise CandidateFailed(UNREADABLE) from None


def how_sure(route: Route, logprobs: Sequence[float]) -> float:
    """The calibrated confidence in an answer with these tokens, or in the first of them where they decide."""
    return apply(route.calibration, confidence(first(logprobs, route.first_tokens)))


def counts(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """What the client is told of an engine's usage."""
    return {key: int((usage or {}).get(key) or 0) for key in _COUNTS}


def _hosted_reply(raw: bytes) -> Reply:
    """The usage stays as the provider told it: what the answer costs is read from it."""
    try:
        body = json.loads(raw)
        choice, usage = body["choices"][0], body.get("usage")
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        finish = str(choice["finish_reason"])
        return Reply(text, 1.0, usage if isinstance(usage, dict) and usage else None, finish)
    except SHAPE_ERRORS:
        raise CandidateFailed(UNREADABLE) from None


def _plain(head: Mapping[str, Any], reply: Reply) -> bytes:
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
    return json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": reply.usage}).encode()


def _events(head: Mapping[str, Any], reply: Reply, with_usage: bool) -> bytes:
    parts = [opening(head, with_usage), chunk(head, {"content": reply.text}, None, with_usage)]
    return b"".join([*parts, chunk(head, {}, reply.finish, with_usage), closing(head, reply.usage, with_usage)])


def opening(head: Mapping[str, Any], with_usage: bool) -> bytes:
    """The event that says whose answer follows."""
    return chunk(head, {"role": "assistant", "content": "", "refusal": None}, None, with_usage)


def chunk(head: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None, with_usage: bool) -> bytes:
    """One event of a stream; where usage is told at its end, each says that it is not told yet."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event(head, {"choices": [choice]} | ({"usage": None} if with_usage else {}))


def closing(head: Mapping[str, Any], usage: Mapping[str, Any] | None, with_usage: bool) -> bytes:
    """The usage, for who asked for it, and the end."""
    return (_event(head, {"choices": [], "usage": usage}) if with_usage else b"") + b"data: [DONE]\n\n"


def _event(head: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', **fields})}\n\n".encode()
