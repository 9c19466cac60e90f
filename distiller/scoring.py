"""Owns how a holdout is scored: as shadow will score it, by the task's evaluator or by its judge.

Must not know where the answers come from. A judge is asked on a loop of its own, as a distillation has none.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from distiller.settings import Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from proxy.translate import close_litellm
from router.evaluators import JUDGE, evaluator
from router.judge import Judge
from router.judge_client import connect_judge
from router.judging import charge_judge, fit, fit_judge, in_words, judged
from router.prices import cost, price_map
from router.said import Said
from router.settings import TaskSettings

_log = logging.getLogger("stillroom.scoring")


@dataclass(frozen=True, slots=True)
class Answered:
    """One exchange with the teacher's answer and another; `request` is its body."""

    exchange: str
    request: Mapping[str, Any]
    teacher: str
    other: str


Score = Callable[[Sequence[Answered]], list[float]]
"""Verdicts in [0, 1] for answers, in their order."""


@contextlib.contextmanager
def scoring(log: Log, settings: Settings, task: str, name: str, declared: TaskSettings) -> Iterator[Score]:
    """How answers of this task are scored; Refused where a judge has to and is not fit for it, with the figures."""
    if name != JUDGE:
        score = evaluator(name, declared.aliases, declared.sets)
        yield lambda answers: [score(each.request, Said(each.teacher), Said(each.other)) for each in answers]
        return
    judge = connect_judge(settings.judge, partial(cost, price_map(settings.money.prices)))
    if judge is None:
        raise BadInput(f"task {task!r} is for a judge: set judge.model")
    with asyncio.Runner() as runner:
        try:
            found = runner.run(fit_judge(log, judge, task, settings.distiller.base))
            if not fit(found):
                raise Refused(f"{in_words(found)}: set another judge.model, or none")
            yield lambda answers: runner.run(_judged(log, judge, task, answers))
        finally:
            runner.run(close_litellm())


async def _judged(log: Log, judge: Judge, task: str, answers: Sequence[Answered]) -> list[float]:
    """What was not judged counts as the worst: a holdout only proposes, so hours of training are not thrown away."""
    asked = [each for each in answers if each.other.strip()]
    said = await asyncio.gather(*(judged(judge, a.exchange, a.request["messages"], a.teacher, a.other) for a in asked))
    log.transaction(lambda connection: charge_judge(connection, task, judge.name, [one.bill for one in said]))
    failed = [one.error for one in said if one.error is not None]
    if failed:
        _log.warning(
            "%d of %d answers were not judged and count as wrong, such as: %s", len(failed), len(said), failed[0]
        )
    verdicts = {id(each): one.verdict for each, one in zip(asked, said, strict=True)}
    return [verdicts.get(id(each), 0.0) for each in answers]
