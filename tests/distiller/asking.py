"""Asks a tutor on loopback questions of one sort, as a distillation does."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from distiller.curate import Recorded
from distiller.questions import Asked, Asker, Sort
from proxy.costs import Sizes
from proxy.log import Log
from proxy.patterns import Redaction
from proxy.redact import Redactor
from proxy.settings import TeacherSettings
from proxy.teachers import Teachers
from proxy.upstream import Teacher
from router.prices import cost
from router.settings import Price
from tests.router.conftest import TASK, chat, insert
from tests.servers import serving
from tests.tutors import Tutor

PRICE = partial(cost, {"gpt-4o": Price(input=1000.0, output=2000.0)})  # So 50 + 20 tokens cost 0.09 dollars.
NONE = partial(cost, {})


def sizes(_: str) -> Sizes:
    return Sizes()


def recorded(log: Log, count: int) -> list[Recorded]:
    texts = [f"letter {number}" for number in range(count)]
    names = insert(log, texts)
    return [row(name, text) for name, text in zip(names, texts, strict=True)]


def row(name: str, text: str, **body: Any) -> Recorded:
    messages = tuple(chat(text))
    request = {"model": "gpt-4o", "messages": list(messages), "stream": True, "seed": 3, **body}
    return Recorded(name, None, messages, "billing", 200, False, "stop", False, None, request)  # type: ignore[arg-type]


def asked(log: Log, tutor: Tutor, sort: Sort, work: Callable[[Asker], Awaitable[Asked]], price: Any = PRICE) -> Asked:
    """What `work` did with an asker whose only teacher is the tutor."""

    async def run(url: str) -> Asked:
        teacher = Teacher(TeacherSettings(url=url))
        try:
            return await work(Asker(log, TASK, sort, Teachers(teacher), price, Redactor(Redaction(emails=True))))
        finally:
            teacher.close()

    with serving(tutor.app()) as url:
        return asyncio.run(run(url))


def charged(log: Log, kind: str) -> list[tuple[Any, ...]]:
    return log.query("SELECT exchange, usd, quantity, unit, model FROM spend WHERE kind = ? ORDER BY ts", [kind])
