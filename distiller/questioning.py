"""Owns what it takes to ask the teacher, from the settings: our own key, prices and lengths, and what is redacted.

Must not know what is asked.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from distiller.questions import Asker, Sort
from distiller.settings import Settings
from proxy.costs import Sizes, SizesOf
from proxy.derive import Price
from proxy.errors import BadInput
from proxy.log import Log
from proxy.names import load_people, require_names
from proxy.redact import Redactor
from proxy.teachers import connect_teachers
from proxy.translate import close_litellm
from router.prices import cost, model_sizes, price_map


@asynccontextmanager
async def asker(log: Log, settings: Settings, task: str, sort: Sort) -> AsyncIterator[Asker]:
    """Connected to the teachers until the end; BadInput without a key of our own."""
    if not settings.teacher.key_env:
        raise BadInput("the teacher is asked with a key of our own: set teacher.key_env to the variable it is in")
    redactor = _redactor(settings)
    async with AsyncExitStack() as stack:
        teachers = connect_teachers(settings.teacher)
        stack.push_async_callback(close_litellm)
        stack.callback(teachers.close)
        yield Asker(log, task, sort, teachers, price_of(settings), redactor)


def price_of(settings: Settings) -> Price:
    """What tokens of a model cost."""
    return partial(cost, price_map(settings.money.prices))


def sizes_of(settings: Settings) -> SizesOf:
    """How long an answer of a model can be, where a request does not say."""
    return model_sizes(Sizes(settings.proxy.context_tokens, settings.proxy.answer_tokens))


def _redactor(settings: Settings) -> Redactor:
    if settings.redaction.names:
        require_names()
    return Redactor(settings.redaction, load_people() if settings.redaction.names else None)
