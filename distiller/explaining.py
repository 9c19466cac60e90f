"""Owns the asking for rationales from settings to outcome: who is asked, about which rows, what is paid and redacted.

Must not know how a question is asked or kept: `distiller.rationales` does.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from distiller.dataset import Dataset, dataset
from distiller.explained import reasoning_keys, whys
from distiller.questioning import asker, price_of, sizes_of
from distiller.questions import Asked
from distiller.rationales import Wish, ask, kept, sort
from distiller.settings import Settings
from proxy.log import Log
from proxy.migrations import migrate

OnProgress = Callable[[str, int, int], None]

_log = logging.getLogger("stillroom.explaining")


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
    log: Log, settings: Settings, task: str, wish: Wish, stop: asyncio.Event, on_progress: OnProgress
) -> Explaining:
    """`stillroom explain`: ask the teacher for rationales of this task's training rows, until `stop` at the latest.

    BadInput without a key of our own, or for a task there is not; Refused where it has too few rows to learn from, or
    its model no price.
    """
    migrate(log)
    data = dataset(log, task, settings)
    done = await _ask(log, settings, data, wish, stop, on_progress)
    why = whys(replace(data, rationales=_known(log, data)))
    return Explaining(task, len(data.train), why.keys, done, len(why.texts), why.contradicting)


def with_rationales(log: Log, settings: Settings, data: Dataset, on_progress: OnProgress) -> Dataset:
    """The dataset with its rationales, asked for first as far as `[distiller] rationale_budget` has room.

    A teacher that fails is no reason not to learn from what there is. Errors as those of `explain`.
    """
    options = settings.distiller
    migrate(log)
    if options.rationale_budget:
        wish = Wish(options.rationale_budget, options.rationale_share)
        done = asyncio.run(_ask(log, settings, data, wish, asyncio.Event(), on_progress))
        if done.problems:
            _log.warning("not every rationale was told: %s", done.problems[0])
    return replace(data, rationales=_known(log, data))


async def _ask(
    log: Log, settings: Settings, data: Dataset, wish: Wish, stop: asyncio.Event, on_progress: OnProgress
) -> Asked:
    """Nobody is asked where the answers reason themselves."""
    async with asker(log, settings, data.task, sort()) as asking:
        if reasoning_keys([row.answer for row in data.train]):
            return Asked(0, 0)
        price, sizes = price_of(settings), sizes_of(settings)
        return await ask(asking, data.train, wish, price, sizes, stop, lambda i, n: on_progress("rationales", i, n))


def _known(log: Log, data: Dataset) -> dict[str, str]:
    return kept(log, [row.exchange_id for row in data.train])
