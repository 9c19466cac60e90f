"""Owns how the settings file is read, and what in it is refused with a line that says what to do.

Must not know what settings are for beyond that. Relative folders are taken from the file's own.
"""

import math
import re
from dataclasses import fields, replace
from pathlib import Path

from distiller.schedule_settings import check_notify, check_schedule
from distiller.settings import STUDENTS, DistillerSettings, Settings
from proxy.asking import check_share
from proxy.choosing import check_teachers
from proxy.errors import BadInput
from proxy.settings import TeacherSettings, parse, read_toml
from proxy.sunset import check_sunsets
from router.evaluators import check_declared
from router.settings import (
    MOST_FIRST_TOKENS,
    MoneySettings,
    Price,
    RivalSettings,
    RouterSettings,
    TaskSettings,
    TokenPrices,
)

DEFAULT_FILE = "stillroom.toml"
LEAST_REPLAY = 0.2


def load_settings(path: Path | None) -> Settings:
    """Read `path`, or ./stillroom.toml where it exists, or take the defaults; BadInput for anything not understood."""
    file = path or Path(DEFAULT_FILE)
    if path is None and not file.exists():
        return Settings()
    settings = parse(Settings, read_toml(file))
    _check(settings)
    return replace(settings, home=str(file.parent.resolve() / settings.home))


def _check(settings: Settings) -> None:
    if not settings.teacher.url.startswith(("http://", "https://")):
        raise BadInput(f"teacher.url must start with http:// or https://, not {settings.teacher.url!r}")
    check_sunsets(settings.teacher.sunsets)
    check_teachers(settings.teacher)
    check_share(settings.teacher.logprobs_share)
    if settings.log.keep_days < 0:
        raise BadInput("log.keep_days must be 0 (for ever) or more")
    if settings.serving.device not in ("cpu", "gpu"):
        raise BadInput(f"serving.device must be cpu or gpu, not {settings.serving.device!r}")
    if settings.serving.port == settings.serving.small_port:
        raise BadInput(f"serving.port and serving.small_port are both {settings.serving.port}: give one another port")
    if settings.judge.concurrency < 1 or settings.judge.timeout <= 0:
        raise BadInput("judge.concurrency must be at least 1, and judge.timeout more than 0 seconds")
    _check_students(settings.distiller)
    _check_rationales(settings.distiller, settings.teacher)
    _check_repeats(settings.distiller, settings.teacher)
    largest = max((settings.distiller.rank, *settings.distiller.ranks))
    if largest > settings.serving.max_lora_rank:
        raise BadInput(
            f"a distiller.rank of {largest} needs serving.max_lora_rank to be at least that, "
            f"not {settings.serving.max_lora_rank}"
        )
    if settings.proxy.keys and not settings.teacher.key_env:
        raise BadInput("proxy.keys = true needs teacher.key_env: our own keys mean nothing to the teacher")
    if settings.proxy.workers < 1:
        raise BadInput(f"proxy.workers must be at least 1, not {settings.proxy.workers}")
    if settings.signing.key and settings.signing.key_env:
        raise BadInput("signing has both key and key_env: clear one of them")
    if settings.edge.context < 1 or settings.edge.threads < 0:
        raise BadInput("edge.context must be at least 1 token, and edge.threads 0 (all cores) or more")
    check_schedule(settings.schedule)
    check_notify(settings.notify)
    _check_router(settings.router)
    _check_money(settings.money)


def _check_students(distiller: DistillerSettings) -> None:
    if not distiller.students or not set(distiller.students) <= set(STUDENTS):
        raise BadInput(f"distiller.students must name some of {', '.join(STUDENTS)}, not {list(distiller.students)}")
    if not 0 < distiller.enough_coverage <= 1:
        raise BadInput(f"distiller.enough_coverage is a share above 0, such as 0.8, not {distiller.enough_coverage}")
    if not 0 <= distiller.hours < math.inf:
        raise BadInput(f"distiller.hours must be 0 (no limit) or more, not {distiller.hours}")
    if any(rank < 8 or rank & (rank - 1) for rank in distiller.ranks):
        raise BadInput(f"distiller.ranks are powers of two from 8 up, such as [8, 32], not {list(distiller.ranks)}")
    _check_retraining(distiller)


def _check_rationales(distiller: DistillerSettings, teacher: TeacherSettings) -> None:
    if not 0 <= distiller.rationale_budget < math.inf:
        raise BadInput(f"distiller.rationale_budget is US dollars, 0 or more, not {distiller.rationale_budget}")
    if not 0 < distiller.rationale_share <= 1:
        raise BadInput(f"distiller.rationale_share is a share above 0, such as 0.2, not {distiller.rationale_share}")
    if distiller.rationale_budget and "explained" not in distiller.students:
        raise BadInput('distiller.rationale_budget is for students that learn rationales: add "explained" to students')
    if distiller.rationale_budget and not teacher.key_env:
        raise BadInput("distiller.rationale_budget needs teacher.key_env: rationales are asked for with our own key")


def _check_repeats(distiller: DistillerSettings, teacher: TeacherSettings) -> None:
    if not 0 <= distiller.repeat_budget < math.inf:
        raise BadInput(f"distiller.repeat_budget is US dollars, 0 or more, not {distiller.repeat_budget}")
    for name in ("repeat_share", "repeat_margin"):
        if not 0 < getattr(distiller, name) <= 1:
            raise BadInput(f"distiller.{name} lies above 0 and up to 1, such as 0.1, not {getattr(distiller, name)}")
    if distiller.repeat_budget and not teacher.key_env:
        raise BadInput("distiller.repeat_budget needs teacher.key_env: the teacher is asked again with our own key")


def _check_retraining(distiller: DistillerSettings) -> None:
    choices = {"init": ("base", "previous"), "snapshots": ("all", "current"), "terms": ("warn", "refuse")}
    for name, (one, other) in choices.items():
        if (said := getattr(distiller, name)) not in (one, other):
            raise BadInput(f'distiller.{name} must be "{one}" or "{other}", not {said!r}')
    wrong = next((one for one, policy in distiller.provider_terms.items() if policy not in choices["terms"]), None)
    if wrong is not None:
        raise BadInput(f'distiller.provider_terms.{wrong} must be "warn" or "refuse"')
    if not LEAST_REPLAY <= distiller.replay_share < 1:
        raise BadInput(
            f"distiller.replay_share must be at least {LEAST_REPLAY} and below 1, not {distiller.replay_share}: with "
            "less of the older rows a student forgets them"
        )
    if not 0 <= distiller.half_life_days < math.inf:
        raise BadInput(f"distiller.half_life_days must be 0 (off) or more days, not {distiller.half_life_days}")
    if not 0 <= distiller.class_balance <= 1:
        raise BadInput(f"distiller.class_balance must lie between 0 (off) and 1, not {distiller.class_balance}")
    if not 1 <= distiller.language_temperature < math.inf:
        raise BadInput(
            "distiller.language_temperature must be 1 (languages count as often as they are) or more, such as 3.0, not "
            f"{distiller.language_temperature}"
        )


def _check_router(router: RouterSettings) -> None:
    for name in ("margin", "alpha"):
        if not 0 < getattr(router, name) < 1:
            raise BadInput(f"router.{name} must lie between 0 and 1, for example 0.05, not {getattr(router, name)}")
    steps = router.canary_shares
    if not steps or sorted(set(steps)) != list(steps) or steps[0] <= 0 or steps[-1] > 1:
        raise BadInput(f"router.canary_shares must be rising shares above 0, such as [0.01, 0.05], not {list(steps)}")
    if not 0 <= router.slice_floor < 1 - router.margin:
        raise BadInput(
            f"router.slice_floor must lie between 0 and 1 - router.margin, for example 0.1, not {router.slice_floor}"
        )
    for name in ("holdback_share", "audit_share", "ceiling_share", "max_failures"):
        if not 0 <= getattr(router, name) <= 1:
            raise BadInput(f"router.{name} is a share between 0 and 1, not {getattr(router, name)}")
    if not 0 < router.judged_share <= 1:
        raise BadInput(f"router.judged_share must be above 0 and at most 1, for example 0.7, not {router.judged_share}")
    for name in ("max_slowdown", "cooldown_hours"):
        if not 0 <= getattr(router, name) < math.inf:
            raise BadInput(f"router.{name} must be 0 (off) or more, not {getattr(router, name)}")
    if not 0 < router.hold_seconds < math.inf:
        raise BadInput(f"router.hold_seconds must be above 0, for example 2.0, not {router.hold_seconds}")
    for task, said in router.tasks.items():
        _check_task(f"router.tasks.{task}", said)
    for name, rival in router.rivals.items():
        _check_rival(f"router.rivals.{name}", name, rival)


def _check_task(place: str, said: TaskSettings) -> None:
    if not 0 <= said.first_tokens <= MOST_FIRST_TOKENS:
        raise BadInput(
            f"{place}.first_tokens must be 0 (the whole answer is held and checked) or at most {MOST_FIRST_TOKENS}, "
            f"not {said.first_tokens}"
        )
    if not 0 <= said.learning_budget < math.inf:
        raise BadInput(f"{place}.learning_budget is US dollars a month, 0 or more, not {said.learning_budget}")
    if said.promote not in ("auto", "manual"):
        raise BadInput(f'{place}.promote must be "auto" or "manual", not {said.promote!r}')
    if said.evaluator:
        try:
            check_declared(said, said.evaluator)
        except BadInput as error:
            raise BadInput(f"{place}: {error}") from None


def _check_money(money: MoneySettings) -> None:
    """A price that is no number would make every sum it enters unpriced."""
    named = {"engine_hour": money.engine_hour, "training_hour": money.training_hour}
    for model, price in money.prices.items():
        named |= _dollars(f"prices.{model!r}", price)
    for number, change in enumerate(money.price_changes):
        if not change.model or change.since is None:
            raise BadInput(f"money.price_changes[{number}] needs a model, and since, its first day (UTC)")
        named |= _dollars(f"price_changes[{number}]", change)
    for name, dollars in named.items():
        if not 0 <= dollars < math.inf:
            raise BadInput(f"money.{name} must be US dollars, 0 or more, not {dollars}")


def _dollars(place: str, price: Price) -> dict[str, float]:
    said = [("", price), *((f".tiers.{tier}", one) for tier, one in price.tiers.items())]
    return {
        f"{place}{tier}.{kind.name}": dollars
        for tier, one in said
        for kind in fields(TokenPrices)
        if (dollars := getattr(one, kind.name)) is not None
    }


def _check_rival(place: str, name: str, rival: RivalSettings) -> None:
    """Its name becomes part of the candidate's, which goes out in a header."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", name):
        raise BadInput(f"{place}: name it with at most 40 letters, digits, dots, dashes and underscores")
    if not rival.tasks or not rival.model:
        raise BadInput(f"{place} needs a model, and tasks = [...] with names from `stillroom tasks`")
    if not rival.url.startswith(("http://", "https://")):
        raise BadInput(f"{place}.url must be the base of an OpenAI-compatible API, such as https://api.openai.com/v1")
    if "@" in rival.url or "?" in rival.url:
        raise BadInput(f"{place}.url must not carry a key, as it is stored: name the key's variable in key_env")
