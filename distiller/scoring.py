"""Owns how a holdout is scored: as shadow will score it, by the task's evaluator or by its judge.

Must not know where the answers come from. A judge is asked on a loop of its own, as a distillation has none.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distiller.learning_budget import learning_of
from distiller.settings import Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from proxy.translate import close_litellm
from router.charges import append
from router.evaluators import JUDGE, evaluator
from router.judge import Judge
from router.judge_client import connect_judge
from router.judging import MOST_PLANTED, calibration_of, fit, fit_judge, in_words, judge_charges, judged
from router.learning import Learning
from router.prices import PriceList
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
    judge = connect_judge(settings.judge, PriceList(settings.money))
    if judge is None:
        raise BadInput(f"task {task!r} is for a judge: set judge.model")
    learning = learning_of(log, settings)

    def judging(answers: Sequence[Answered]) -> list[float]:
        with _judge_paid(learning, task, len(answers)):
            return runner.run(_judged(log, judge, task, answers))

    with asyncio.Runner() as runner:
        try:
            tried = calibration_of(log, judge.name, task)
            with _judge_paid(learning, task, 0 if tried else MOST_PLANTED):
                found = runner.run(fit_judge(log, judge, task, settings.distiller.base))
            if not fit(found):
                raise Refused(f"{in_words(found)}: set another judge.model, or none")
            yield judging
        finally:
            runner.run(close_litellm())


@contextlib.contextmanager
def _judge_paid(learning: Learning, task: str, answers: int) -> Iterator[None]:
    """Set aside what judging takes; Refused where the month's learning budget has no room for all of it."""
    with learning.exchanges(task, ["judge"] if answers else [], answers) as most:
        if most < answers:
            raise Refused(
                f"{task} cannot be judged this month: {learning.waits.get(task) or 'its budget is too small'}"
            )
        yield


async def _judged(log: Log, judge: Judge, task: str, answers: Sequence[Answered]) -> list[float]:
    """What was not judged counts as the worst: a holdout only proposes, so hours of training are not thrown away."""
    asked = [each for each in answers if each.other.strip()]
    said = await asyncio.gather(*(judged(judge, a.exchange, a.request["messages"], a.teacher, a.other) for a in asked))
    charges = judge_charges(task, judge.name, [one.bill for one in said])
    log.transaction(lambda connection: append(connection, charges))
    failed = [one.error for one in said if one.error is not None]
    if failed:
        _log.warning(
            "%d of %d answers were not judged and count as wrong, such as: %s", len(failed), len(said), failed[0]
        )
    verdicts = {id(each): one.verdict for each, one in zip(asked, said, strict=True)}
    return [verdicts.get(id(each), 0.0) for each in answers]
