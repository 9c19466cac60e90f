"""Owns asking the teacher again before a student learns, from settings to dataset: whom it left inconsistent goes.

Must not know how a question is asked or kept: `distiller.repeats` does.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from distiller.curate import Recorded
from distiller.dataset import Dataset, less
from distiller.doubt import FORMS, doubtful
from distiller.questioning import asker, price_of, sizes_of
from distiller.questions import Asked
from distiller.repeats import INCONSISTENT, askable, inconsistent, question, sort
from distiller.settings import Settings
from proxy.log import Log
from proxy.migrations import migrate
from router.evaluators import Evaluator, evaluator

OnProgress = Callable[[str, int, int], None]

_log = logging.getLogger("stillroom.repeating")


def consistent(log: Log, settings: Settings, data: Dataset, on_progress: OnProgress) -> Dataset:
    """The dataset without rows that the teacher answers otherwise when asked again; it is asked as far as is paid for.

    What earlier runs were told counts, also without a budget. A teacher that fails is no reason not to learn. BadInput
    without a key of our own, Refused where its model has no price.
    """
    if data.evaluator not in FORMS:
        return data
    migrate(log)
    score = evaluator(data.evaluator, data.declared.aliases, data.declared.sets)
    if settings.distiller.repeat_budget:
        done = asyncio.run(_ask(log, settings, data, score, on_progress))
        if done.problems:
            _log.warning("not every row in doubt was asked again: %s", done.problems[0])
    return less(data, inconsistent(log, data.train, score), INCONSISTENT, settings)


def due(settings: Settings, data: Dataset) -> Sequence[Recorded]:
    """The rows to ask about again: of those that can be, the most in doubt, at most `repeat_share` of all."""
    options = settings.distiller
    found = doubtful(data.train, data.evaluator, data.declared.aliases, options.repeat_margin)
    return [row for row, _ in found if askable(row)][: int(options.repeat_share * len(data.train))]


async def _ask(log: Log, settings: Settings, data: Dataset, score: Evaluator, on_progress: OnProgress) -> Asked:
    rows, price, sizes = due(settings, data), price_of(settings), sizes_of(settings)
    questions = [one for one in (question(row, price, sizes) for row in rows) if one]
    async with asker(log, settings, data.task, sort(rows, score)) as asking:
        return await asking.run(
            questions, settings.distiller.repeat_budget, None, asyncio.Event(),
            lambda i, n: on_progress("asked again", i, n),
        )  # fmt: skip
