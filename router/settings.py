"""Owns the settings of routing: the margin, the error rate, the steps from shadow to live."""

from dataclasses import dataclass, field

MOST_FIRST_TOKENS = 64  # Who waits for more of them may as well wait for the whole answer.


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """`[router.tasks.NAME]`: what is said of one task instead of being found out.

    `evaluator` is the name of one, or "package.module:function"; empty: chosen from the answers. `aliases` are labels
    that mean another one. `sets` are paths of arrays whose order does not matter, such as "items" or "orders[].tags".
    `promote` is "auto" or "manual": whether a proof moves a candidate on, or only allows an operator to.
    `first_tokens` is after how many of a student's tokens is decided whether it answers, for the students to come;
    0: after all of them.
    """

    evaluator: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    promote: str = "auto"
    first_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RivalSettings:
    """`[router.rivals.NAME]`: a hosted model that may answer `tasks` for less money than the teacher.

    `url` is the base of an OpenAI-compatible API, with its /v1; other providers are not spoken to. `key_env` names the
    variable with its key, empty: it needs none.
    """

    tasks: tuple[str, ...] = ()
    model: str = ""
    url: str = ""
    key_env: str = ""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """`[router]`: declared before any data is seen; shares in [0, 1], times in seconds unless the name says hours.

    `canary_shares` are the steps between shadow and live, `canary_exchanges` how many tries each of them takes.
    `judged_share` is the least share of a student's answers in shadow that a judge is paid for; 1: all of them.
    """

    margin: float = 0.05
    alpha: float = 0.05
    slice_floor: float = 0.1
    canary_shares: tuple[float, ...] = (0.01, 0.05, 0.25)
    canary_exchanges: int = 50
    max_failures: float = 0.05
    max_slowdown: float = 2.0
    cooldown_hours: float = 24.0
    holdback_share: float = 0.02
    audit_share: float = 0.05
    ceiling_share: float = 0.1
    judged_share: float = 0.7
    shadow_concurrency: int = 8
    candidate_timeout: float = 10.0
    hold_seconds: float = 2.0
    candidate_concurrency: int = 8
    poll_seconds: float = 1.0
    tasks: dict[str, TaskSettings] = field(default_factory=dict)
    rivals: dict[str, RivalSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """`[judge]`: who decides about free text; without a `model`, such answers must be the same to count.

    `model` is named as litellm does, such as "openai/gpt-4o"; `url` is its api_base where that is not the provider's
    own, with the /v1 of an OpenAI-compatible server; `key_env` names the variable with its key, empty: the provider's
    own variable, and no key at all for a `url`. `timeout` is in seconds a question.
    """

    model: str = ""
    url: str = ""
    key_env: str = ""
    timeout: float = 60.0
    concurrency: int = 4


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; `cached_input` defaults to the price of input."""

    input: float
    output: float
    cached_input: float | None = None


@dataclass(frozen=True, slots=True)
class MoneySettings:
    """`[money]`: what the price map does not know. `engine_hour` is US dollars per hour of the serving machine."""

    engine_hour: float = 0.0
    training_hour: float = 0.0
    prices: dict[str, Price] = field(default_factory=dict)
