"""Owns the check that teachers can be reached and take our keys: one GET /v1/models of each, which costs nothing.

Must not send a key anywhere but where the proxy would: redirects are not followed. The answers' clocks tell on ours.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from distiller.finding import FIX, OK, WARN, Finding
from distiller.settings import Settings

SECONDS = 20.0
SKEW = timedelta(seconds=60)
_REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whom, with the key in which variable; "" is none."""

    name: str
    url: str
    key_env: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """A status and the answer's own time; without a status, why there was no answer."""

    status: int | None
    date: datetime | None
    why: str = ""


def check_teachers_online(settings: Settings) -> Iterator[Finding]:
    """The usual teacher, its deployments, named teachers and rivals."""
    asked = _asked(settings)
    answers = asyncio.run(_ask(asked, min(settings.teacher.connect_timeout, SECONDS)))
    for one, answer in zip(asked, answers, strict=True):
        yield _judged(one, answer)
    now = datetime.now(UTC)
    skews = [abs(now - answer.date) for answer in answers if answer.date is not None]
    if skews and min(skews) > SKEW:
        told = f"it is {min(skews).total_seconds():,.0f} s from the teachers' clocks: see to NTP"
        yield Finding("clock online", FIX, told)


def _asked(settings: Settings) -> list[_Asked]:
    teacher = settings.teacher
    further = enumerate(teacher.deployments)
    return [
        _Asked("teacher", f"{teacher.url.rstrip('/')}/v1/models", teacher.key_env),
        *(_Asked(f"teacher.deployments[{i}]", f"{one.url.rstrip('/')}/v1/models", one.key_env) for i, one in further),
        *(_Asked(f"teacher.named.{name}", f"{one.url.rstrip('/')}/v1/models", one.key_env)
          for name, one in teacher.named.items()),
        *(_Asked(f"router.rivals.{name}", f"{one.url.rstrip('/')}/models", one.key_env)
          for name, one in settings.router.rivals.items()),
    ]  # fmt: skip


async def _ask(asked: list[_Asked], seconds: float) -> list[_Answer]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=SECONDS, connect=seconds)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(each: _Asked) -> _Answer:
            key = os.environ.get(each.key_env, "") if each.key_env else ""
            headers = {"authorization": f"Bearer {key}"} if key else {}
            try:
                async with session.get(each.url, headers=headers, allow_redirects=False) as response:
                    return _Answer(response.status, _date(response.headers.get("date", "")))
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                return _Answer(None, None, str(error) or type(error).__name__)

        return await asyncio.gather(*map(one, asked))


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _judged(one: _Asked, answer: _Answer) -> Finding:
    if answer.status is None:
        return Finding(one.name, FIX, f"{one.url} cannot be reached: {answer.why}")
    if answer.status in _REFUSED:
        if one.key_env:
            return Finding(
                one.name, FIX, f"{one.url} refuses the key in {one.key_env} ({answer.status}): put in a good one"
            )
        return Finding(one.name, OK, f"{one.url} answers, and wants a key, which clients bring")
    if answer.status == 200:
        return Finding(
            one.name, OK, f"{one.url} answers" + (f", and takes the key in {one.key_env}" if one.key_env else "")
        )
    remedy = (
        "see whether its URL is right: it goes without the /v1" if "rivals" not in one.name else "its URL ends in /v1"
    )
    return Finding(one.name, WARN, f"{one.url} answers {answer.status}: {remedy}")
