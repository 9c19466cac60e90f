"""Owns `stillroom explain` from settings to outcome: who is asked, about which rows, with what to pay and to redact.

Must not know how a question is asked or kept: `distiller.rationales` does.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from distiller.dataset import Dataset, dataset
from distiller.explained import contradicts, reasoning_keys
from distiller.rationales import Asked, Asking, Wish, kept
from distiller.settings import Settings
from proxy.costs import Sizes
from proxy.deployments import connect
from proxy.errors import BadInput
from proxy.log import Log
from proxy.migrations import migrate
from proxy.names import load_people, require_names
from proxy.redact import Redactor
from proxy.translate import close_litellm, translating
from router.prices import cost, model_sizes, price_map


@dataclass(frozen=True, slots=True)
class Explaining:
    """What one run came to: `keys` where the answers reason themselves, so that nothing was asked.

    `usable` are the rationales of the task's training rows that there are now, `contradicting` those that come to
    another answer and are never learned.
    """

    task: str
    rows: int
    keys: tuple[str, ...]
    asked: Asked
    usable: int
    contradicting: int


async def explain(
    log: Log,
    settings: Settings,
    task: str,
    wish: Wish,
    stop: asyncio.Event,
    on_progress: Callable[[str, int, int], None],
) -> Explaining:
    """Ask the teacher for rationales of this task's training rows, until `stop` at the latest.

    BadInput without a key of our own, or for a task there is not; Refused where it has too few rows to learn from, or
    its model no price.
    """
    if not settings.teacher.key_env:
        raise BadInput("rationales are asked for with a key of our own: set teacher.key_env to the variable it is in")
    migrate(log)
    data = dataset(log, task, settings)
    if keys := reasoning_keys([row.answer for row in data.train]):
        return _come_to(log, data, keys, Asked(0, 0))
    redactor = _redactor(settings)
    async with AsyncExitStack() as stack:
        direct = connect(settings.teacher)
        stack.push_async_callback(close_litellm)
        stack.callback(direct.close)
        asking = Asking(
            log, task, translating(direct, settings.teacher), partial(cost, price_map(settings.money.prices)),
            model_sizes(Sizes(settings.proxy.context_tokens, settings.proxy.answer_tokens)), redactor,
        )  # fmt: skip
        done = await asking.run(data.train, wish, stop, lambda i, n: on_progress("rationales", i, n))
    return _come_to(log, data, (), done)


def _redactor(settings: Settings) -> Redactor:
    if settings.redaction.names:
        require_names()
    return Redactor(settings.redaction, load_people() if settings.redaction.names else None)


def _come_to(log: Log, data: Dataset, keys: tuple[str, ...], done: Asked) -> Explaining:
    answers = {row.exchange_id: row.answer for row in data.train}
    wrong = [
        contradicts(text, answers[name], data.labels, data.declared.aliases)
        for name, text in kept(log, list(answers)).items()
    ]
    return Explaining(data.task, len(data.train), keys, done, len(wrong) - sum(wrong), sum(wrong))
