"""Owns how a judge is reached: through litellm, which speaks to every provider, and what a question to it costs.

litellm is imported at the first question, in a thread. Must not know what is asked. What a provider declines for good
(the prompt, its length, its content) is an answer without text; anything else may go away and is Unavailable.
"""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from proxy.derive import CHAT, Price, derive
from proxy.errors import BadInput, Unavailable
from proxy.messages import prompt_to_pay
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.translate import known_secrets, load_litellm
from proxy.translated import Failures
from router.judge import AskJudge, Judge, Message, Spoken
from router.settings import JudgeSettings

LONGEST = 1024  # tokens of a reply: few are needed, but some models think before
_NO_KEY = "none"  # for servers that ask for none; the provider's own key was meant for another host
_FINAL = (400, 413, 422)


def connect_judge(settings: JudgeSettings, price: Price) -> Judge | None:
    """The judge of these settings, None where they name none; BadInput for a variable that is not set."""
    if not settings.model:
        return None
    return Judge(settings.model, litellm_judge(settings, price), settings.concurrency)


def litellm_judge(settings: JudgeSettings, price: Price) -> AskJudge:
    """Asks `settings.model`; `price` gives US dollars for a call's tokens, or None."""
    key = os.environ.get(settings.key_env, "") if settings.key_env else ""
    if settings.key_env and not key:
        raise BadInput(f"judge.key_env names {settings.key_env}, which is not set: export the judge's key there")
    provider = settings.model.partition("/")[0]
    failures = Failures(provider, known_secrets(key), Redactor(SECRETS_ONLY))
    options = {
        "model": settings.model, "api_key": key or (_NO_KEY if settings.url else None),
        "api_base": settings.url or None, "timeout": settings.timeout, "temperature": 0, "max_tokens": LONGEST,
        "drop_params": True, "num_retries": 0, "max_retries": 0,
    }  # fmt: skip
    return partial(_ask, options, failures, price)


async def _ask(options: dict[str, Any], failures: Failures, price: Price, messages: Sequence[Message]) -> Spoken:
    litellm = await asyncio.to_thread(load_litellm)
    asked = [dict(message) for message in messages]
    try:
        answer = await litellm.acompletion(messages=asked, **options)
        body: str = answer.model_dump_json()
    except Exception as error:  # litellm's own have no base in common, and what a provider sends can raise any.
        if failures.answer(error).status in _FINAL:
            return Spoken(None, 0.0)  # Refused requests are not paid for.
        raise Unavailable(f"the judge did not answer: {failures.text(error)}") from None
    said = derive(CHAT, None, "{}", 200, False, body)
    paid = prompt_to_pay(said.prompt_tokens, said.usage)
    counted = bool(paid or said.completion_tokens)  # litellm makes zeros of a usage that was not told.
    usd = price(options["model"], paid, said.cached_tokens, said.completion_tokens) if counted else None
    return Spoken(said.answer or "", usd)
