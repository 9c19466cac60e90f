"""Owns asking a recorded exchange again, of any model there is: who can be asked, what it may cost, what was said.

Teachers and hosted candidates get the recorded bytes, of which only the model's name is another one; a student is shown
what it is shown in live traffic. What is answered is nobody's traffic: it goes to whoever asked, is charged to the
ledger as "replay", and is never recorded as an exchange. Must not know who may ask, nor how an answer is shown.
"""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from distiller.operating import ready
from distiller.settings import Settings
from proxy.answers import UpstreamResponse
from proxy.bodies import inflated
from proxy.client import UpstreamBroke, UpstreamSilent
from proxy.deciding import CandidateFailed
from proxy.derive import CHAT, PAID, Derived, derive
from proxy.errors import BadInput, Refused
from proxy.headers import header
from proxy.kinds import Call, Price
from proxy.log import Log
from proxy.relay import Upstream
from proxy.renaming import renamed
from proxy.settings import NamedTeacherSettings
from proxy.teachers import connect_teachers
from proxy.tokens import estimator
from proxy.upstream import Teacher
from router.candidates import SHAPE_ERRORS, ask, check
from router.charges import Charge, append
from router.lifecycle import route
from router.price_history import recorded
from router.prices import PriceList
from router.registry import HOSTED, Candidate, candidates

KIND = "replay"  # of its charge
LONGEST = 120.0  # seconds a replay may take
LARGEST = 8 << 20  # bytes of an answer; what comes after them is not read
SHOWN = 60_000  # characters of it that are kept as they came
TEACHER, NAMED, CANDIDATE = "teacher", "named", "candidate"
_SENDABLE = re.compile("[!-~]*")  # of an address, and of a header's value with blanks


@dataclass(frozen=True, slots=True)
class Target:
    """Who can be asked; `model` is asked in the place of the recorded one, None: that one.

    `why_not` says why nobody can be asked just now. `usd` is what it may cost: an estimate, by the recorded counts, and
    None where that is unpriced. Of a student, whose hours are paid anyway, it is 0.
    """

    key: str
    words: str
    model: str | None
    why_not: str
    usd: float | None
    basis: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it. Times in milliseconds; `pieces` is in how many the answer came.

    `said` is how the answer came, but for what was `left_out` at its end; `charged` is whether there is a charge, `usd`
    None being unpriced. `problem` says what kept the answer from being whole, or from being what would be served.
    """

    target: str
    model: str
    status: int
    stream: bool
    said: str
    answer: str | None
    tool_calls: str | None
    first_ms: float | None
    total_ms: float
    pieces: int
    prompt_tokens: int | None
    completion_tokens: int | None
    charged: bool
    usd: float | None
    confidence: float | None = None
    problem: str = ""
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class _Came:
    """What came over the wire; `paid` is whether the other side may have answered, whatever came of it."""

    status: int
    stream: bool
    raw: bytes
    coding: str
    first_ms: float | None
    total_ms: float
    pieces: int
    paid: bool
    problem: str


def targets(log: Log, settings: Settings, row: Mapping[str, Any]) -> list[Target]:
    """All who could answer the exchange of this row, the teacher first."""
    price = PriceList(settings.money, recorded(log))
    return [
        _target(key, words, model, row, price, _cannot(settings, row, key, there))
        for key, words, model, there in _known(log, settings, row)
    ]


def replay(log: Log, settings: Settings, row: Mapping[str, Any], body: bytes, key: str, model: str = "") -> Replayed:
    """Ask the target `key` for an answer to the recorded `body`, of `model` where that is given, and charge for it.

    BadInput where there is no such target; Refused where it cannot be asked.
    """
    known = {target.key: target for target in targets(log, settings, row)}
    if key not in known:
        raise BadInput(f"there is nobody called {key[:80]!r} to ask")
    target = known[key]
    if target.why_not:
        raise Refused(f"{target.words} cannot be asked: {target.why_not}")
    if model and key.partition(":")[0] == CANDIDATE:
        raise BadInput("a candidate is one model: only a teacher can be asked for another one")
    if key == TEACHER and _is_translated(settings, model):
        raise Refused(f"litellm translates for {model[:80]}, which is not done here")
    found = next((one for one in candidates(log) if f"{CANDIDATE}:{one.id}" == key), None)
    if found is not None and found.kind != HOSTED:
        return asyncio.run(_of_student(settings, found, body))
    return _of_wire(log, settings, row, body, target, found, model)


def _known(log: Log, settings: Settings, row: Mapping[str, Any]) -> list[tuple[str, str, str | None, bool]]:
    """Key, words, model and whether it is there, of all who might be asked."""
    found: list[tuple[str, str, str | None, bool]] = [
        (TEACHER, "the teacher", None, bool(settings.teacher.key_env)),
        *((f"{NAMED}:{name}", f"the teacher {name}", one.model or None, True)
          for name, one in settings.teacher.named.items()),
    ]  # fmt: skip
    served = ready(settings)
    for one in candidates(log, row["task"]) if row["task"] is not None else ():
        hosted = one.kind == HOSTED
        words = f"{one.id} ({one.card.get('model') if hosted else 'student'}, {one.stage})"
        found.append((f"{CANDIDATE}:{one.id}", words, one.card.get("model"), hosted or one.id in served))
    return found


def _cannot(settings: Settings, row: Mapping[str, Any], key: str, there: bool) -> str:
    kind = key.partition(":")[0]
    if row["method"] != "POST" or row["path"].rstrip("/") not in PAID:
        return f"{row['method']} {row['path']} asks no model"
    if row["request"] is None:
        return "its request was not recorded"
    if not _SENDABLE.fullmatch(row["query"] or ""):
        return "the query of its address cannot be sent as it was recorded"
    if kind == TEACHER and _is_translated(settings, str(row["model"] or "")):
        return "litellm translates for its model, which is not done here"
    if kind == CANDIDATE and row["path"].rstrip("/") != CHAT:
        return "candidates answer chat completions only"
    if there:
        return ""
    return "teacher.key_env is not set, and clients' keys are kept nowhere" if kind == TEACHER else "it is not loaded"


def _is_translated(settings: Settings, model: str) -> bool:
    """Whether litellm would be asked: its connections belong to the event loop of this process's own questions."""
    return model.startswith(settings.teacher.translate)


def _target(key: str, words: str, model: str | None, row: Mapping[str, Any], price: Price, why_not: str) -> Target:
    if key.startswith(CANDIDATE) and model is None:
        return Target(key, words, None, why_not, 0.0, "its engine's hours are paid anyway")
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    asked = model or row["model"]
    usd = price(Call(asked, prompt, 0, completion))
    if usd is not None:
        basis = f"{prompt:,} prompt tokens, and {completion:,} if it answers as long as was recorded"
    elif prompt is None or completion is None:
        basis = "nobody counted the tokens of the recorded exchange"
    else:
        basis = f"{asked} has no price: set it under [money.prices]"
    return Target(key, words, model, why_not, usd, basis)


def _of_wire(
    log: Log,
    settings: Settings,
    row: Mapping[str, Any],
    body: bytes,
    target: Target,
    found: Candidate | None,
    model: str,
) -> Replayed:
    asked, sent = _named(row, body, model or target.model)
    price, count = PriceList(settings.money, recorded(log)), estimator()  # What fails here has cost nothing.
    came = asyncio.run(_over_the_wire(settings, row, target.key, found, sent))
    said, derived, usd = "", Derived(), None
    try:
        said = inflated(came.raw, came.coding).decode("utf-8", "replace")
        text = sent.decode("utf-8", "replace")
        derived = derive(row["path"], None, text, came.status, came.stream, said, count)
        usd = price(derived.call(asked)) if came.paid else None
    finally:  # Whatever is made of the answer, it was paid for.
        if came.paid:
            tokens = derived.prompt_tokens, derived.completion_tokens
            who = found.id if found else asked
            paid = Charge(KIND, usd, 1.0, "exchange", row["task"], who, row["id"], *tokens)
            log.transaction(lambda connection: append(connection, [paid]))
    return _replayed(target, asked, came, said, derived, usd)


def _named(row: Mapping[str, Any], body: bytes, model: str | None) -> tuple[str, bytes]:
    """The model that is asked, and the bytes that ask it."""
    recorded = str(row["model"] or "")
    if not model or model == recorded:
        return recorded, body
    spliced = renamed(body, lambda _: model)
    if spliced is None:
        raise Refused("the recorded request is no JSON that names a model, so it can be sent only as it is")
    return model, spliced.body


async def _over_the_wire(
    settings: Settings, row: Mapping[str, Any], key: str, found: Candidate | None, body: bytes
) -> _Came:
    """Send, and read what comes, within LONGEST seconds and LARGEST bytes."""
    upstream, close = _upstream(settings, key, found)
    target = row["path"] + (f"?{row['query']}" if row["query"] else "")
    started = time.perf_counter()
    pieces: list[bytes] = []
    headers: tuple[tuple[bytes, bytes], ...] = ()
    first, status, size, paid, problem = None, 0, 0, True, ""
    response: UpstreamResponse | None = None
    limit = asyncio.timeout(LONGEST)
    try:
        async with limit:
            response = await upstream.forward("POST", target, _headers(row), body)
            status, headers = response.status, tuple(response.raw_headers)
            async for piece in response.pieces():
                first = (time.perf_counter() - started) * 1000 if first is None else first
                pieces.append(piece)
                size += len(piece)
                if size > LARGEST:
                    problem = f"the answer is longer than {LARGEST >> 20} MB: what follows was not read"
                    break
    except OSError as error:
        # Only then can the other side have had the request.
        paid = isinstance(error, UpstreamBroke | UpstreamSilent) or limit.expired()
        why = f"it did not end within {LONGEST:g} seconds" if limit.expired() else str(error)
        problem = why if paid else f"it could not be reached: {why}"
    finally:
        if response is not None:
            response.close()
        close()
    elapsed, coding = (time.perf_counter() - started) * 1000, (header(headers, b"content-encoding") or b"")
    stream = (header(headers, b"content-type") or b"").startswith(b"text/event-stream")
    came, was_paid = b"".join(pieces), paid and status in (0, 200)
    return _Came(status, stream, came, coding.decode("latin-1"), first, elapsed, len(pieces), was_paid, problem)


def _upstream(settings: Settings, key: str, found: Candidate | None) -> tuple[Upstream, Any]:
    if found is not None:
        place = NamedTeacherSettings(str(found.card["url"]), str(found.card.get("key_env", "")))
        own = dataclasses.replace(settings.teacher, url=place.url, key_env=place.key_env)
        hosted = Teacher(own, f"the rival {found.id}", client_keys=False)
        return hosted, hosted.close
    teachers = connect_teachers(settings.teacher)
    upstream = teachers.of(key.partition(":")[2] or None)
    if upstream is None:
        raise BadInput(f"there is no teacher {key!r} any more")
    return upstream, teachers.close


def _headers(row: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Only what says how to read the body: a body that was kept as text has lost its coding."""
    kept = ("content-type", "content-encoding") if row["request_encoding"] == "base64" else ("content-type",)
    given = [(str(name), str(value)) for name, value in json.loads(row["request_headers"] or "[]")]
    found = [
        (name.encode(), value.encode())
        for name, value in given
        if name.lower() in kept and _SENDABLE.fullmatch(value.replace(" ", ""))
    ]
    return found or [(b"content-type", b"application/json")]


def sound(text: str) -> str:
    """The text without halves of characters, which JSON can spell and no page can hold."""
    return text.encode("utf-8", "replace").decode()


def _replayed(target: Target, asked: str, came: _Came, said: str, derived: Derived, usd: float | None) -> Replayed:
    problem = came.problem or ("" if came.status == 200 else f"it answered {came.status}")
    return Replayed(
        target=target.words,
        model=asked,
        status=came.status,
        stream=came.stream,
        said=said[:SHOWN],
        answer=derived.answer,
        tool_calls=derived.tool_calls,
        first_ms=came.first_ms,
        total_ms=came.total_ms,
        pieces=came.pieces,
        prompt_tokens=derived.prompt_tokens,
        completion_tokens=derived.completion_tokens,
        charged=came.paid,
        usd=usd,
        problem=problem,
        left_out=max(0, len(said) - SHOWN),
    )


async def _of_student(settings: Settings, found: Candidate, body: bytes) -> Replayed:
    """As in live traffic: what varies of the request, and the same checks of the answer."""
    try:
        asked = json.loads(body)
        if not isinstance(asked, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError):
        raise Refused("the recorded request is no JSON object, so a student cannot read it") from None
    served = ready(settings).get(found.id)
    if served is None:
        raise Refused(f"{found.id} is not loaded any more")
    way = dataclasses.replace(route(found, settings.router, served), timeout=LONGEST)
    started = time.perf_counter()
    text, sure, usage, problem = None, None, dict[str, Any](), ""
    try:
        async with aiohttp.ClientSession() as session:
            reply = await ask(session, way, asked)
        text, sure, usage = sound(reply.text), reply.confidence, dict(reply.usage or {})
        check(way, reply)
    except CandidateFailed as failed:
        problem = f"the teacher would answer: {failed}"
    except SHAPE_ERRORS as error:
        problem = f"it cannot be asked this: {type(error).__name__}"
    elapsed = (time.perf_counter() - started) * 1000
    return Replayed(
        target=f"{found.id} (student, {found.stage})", model=found.id, status=0 if text is None else 200, stream=False,
        said=(text or "")[:SHOWN], answer=text, tool_calls=None, first_ms=None, total_ms=elapsed, pieces=1,
        prompt_tokens=usage.get("prompt_tokens"), completion_tokens=usage.get("completion_tokens"), charged=False,
        usd=0.0, confidence=sure, problem=problem, left_out=max(0, len(text or "") - SHOWN),
    )  # fmt: skip
