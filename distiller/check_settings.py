"""Owns the check for settings that were changed and have no effect, because of another one.

Must not know what is a mistake of its own kind: that is refused when the file is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

from distiller.finding import OK, WARN, Finding
from distiller.settings import Settings

_LANGUAGE_MODELS = {"adapter", "soft", "explained", "labels", "cascade"}
_ENCODED = {"head", "encoder", "cascade"}


@dataclass(frozen=True, slots=True)
class _Idle:
    """Settings that only count where `counts` says so; `unless` says the same in words."""

    names: tuple[str, ...]
    counts: Callable[[Settings], bool]
    unless: str


def _tries(*kinds: str) -> Callable[[Settings], bool]:
    return lambda settings: bool(set(kinds) & set(settings.distiller.students))


_IDLE = (
    _Idle(
        ("proxy.context_tokens", "proxy.answer_tokens"), lambda s: s.proxy.keys,
        "proxy.keys is false: only keys have budgets",
    ),
    _Idle(
        ("judge.url", "judge.key_env", "judge.timeout", "judge.concurrency", "router.judged_share"),
        lambda s: bool(s.judge.model), "judge.model is empty: nobody judges",
    ),
    _Idle(
        ("router.audit_share", "router.ceiling_share"), lambda s: bool(s.teacher.key_env),
        "teacher.key_env is empty: nobody can ask the teacher again",
    ),
    _Idle(("distiller.alpha_hard", "teacher.logprobs_share"), _tries("soft"), '"soft" is not in distiller.students'),
    _Idle(("distiller.alpha_hard",), lambda s: s.teacher.logprobs_share > 0, "teacher.logprobs_share is 0"),
    _Idle(
        ("distiller.encoder",), _tries(*_ENCODED), "no kind in distiller.students reads an encoder",
    ),
    _Idle(("distiller.encoder_tokens",), _tries("encoder"), '"encoder" is not in distiller.students'),
    _Idle(
        ("distiller.base", "distiller.bases", "distiller.rank", "distiller.ranks", "distiller.epochs",
         "distiller.learning_rate", "distiller.train_tokens", "distiller.layers", "distiller.control_rows"),
        _tries(*_LANGUAGE_MODELS), "no kind in distiller.students is a language model",
    ),
    _Idle(
        ("distiller.rationale_share",), lambda s: s.distiller.rationale_budget > 0, "distiller.rationale_budget is 0",
    ),
    _Idle(
        ("distiller.repeat_share", "distiller.repeat_margin"), lambda s: s.distiller.repeat_budget > 0,
        "distiller.repeat_budget is 0",
    ),
    _Idle(("distiller.replay_share",), lambda s: s.distiller.init == "previous", 'distiller.init is "base"'),
    _Idle(("serving.kv_cache_gb",), lambda s: s.serving.device == "cpu", 'serving.device is "gpu"'),
    _Idle(
        ("router.hold_seconds",), lambda s: any(task.first_tokens for task in s.router.tasks.values()),
        "no router.tasks has first_tokens",
    ),
    _Idle(
        ("notify.webhook_secret_env",), lambda s: bool(s.notify.webhook), "notify.webhook is empty: nothing is posted",
    ),
    _Idle(
        ("notify.mail_from", "notify.smtp_host", "notify.smtp_user"), lambda s: bool(s.notify.mail_to),
        "notify.mail_to is empty: nobody gets mail",
    ),
    _Idle(
        ("teacher.tasks",), lambda s: any(said.teachers for said in s.teacher.tasks.values()),
        "none of them names teachers",
    ),
)  # fmt: skip


def check_settings(settings: Settings) -> Iterator[Finding]:
    """A finding for each changed setting without effect; one that all is well where there is none."""
    defaults = Settings()
    found = [
        Finding("settings", WARN, f"{name} has no effect: {idle.unless}")
        for idle in _IDLE
        for name in idle.names
        if _at(settings, name) != _at(defaults, name) and not idle.counts(settings)
    ]
    if settings.log.keep_days and settings.log.keep_days < settings.spool.keep_days:
        told = f"log.keep_days = {settings.log.keep_days} counts as spool.keep_days = {settings.spool.keep_days}: an "
        found.append(Finding("settings", WARN, told + "exchange never goes before its segment"))
    yield from found or [Finding("settings in use", OK, "every changed setting has an effect")]


def _at(settings: Settings, name: str) -> object:
    return reduce(getattr, name.split("."), settings)
