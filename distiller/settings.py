"""Owns the settings of distilling and serving, and the whole file: `Settings` holds every table there is."""

import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from proxy.asking import check_share
from proxy.choosing import check_teachers
from proxy.errors import BadInput
from proxy.patterns import Redaction
from proxy.settings import (
    AdminSettings,
    LoggingSettings,
    LogSettings,
    ProxySettings,
    SpoolSettings,
    TeacherSettings,
    TelemetrySettings,
    parse,
    read_toml,
)
from proxy.sunset import check_sunsets
from router.evaluators import check_declared
from router.settings import MOST_FIRST_TOKENS, JudgeSettings, MoneySettings, RivalSettings, RouterSettings, TaskSettings

DEFAULT_FILE = "stillroom.toml"
LEAST_REPLAY = 0.2
# The kinds there are, the cheapest to serve first.
STUDENTS = ("head", "encoder", "cascade", "labels", "adapter", "soft", "explained")


@dataclass(frozen=True, slots=True)
class DistillerSettings:
    """`[distiller]`: which students are tried, from what they grow, and when.

    Empty `schedule` and zero `new_exchanges` mean by hand only. Of `students`, the kinds that are tried, none is after
    one that would answer the share `enough_coverage` of the task's exchanges, but those that are tried against it; none
    is begun after `hours` (0: no limit). Language models are tried with every base and rank: `base` and `bases`, `rank`
    and `ranks`. `rationale_budget` is what the teacher may be paid for rationales, in US dollars for a task in all, 0
    for none; it is asked about `rationale_share` of the exchanges to learn from. `repeat_budget` likewise is for asking
    it again about those in doubt, by a margin below `repeat_margin`, at most `repeat_share` of them. `init` "previous"
    lets an adapter go on from the one before, `snapshots` "current" leaves out what an older teacher said, `terms`
    "refuse" wants every provider in `teacher_terms_ack` whose terms need it; `provider_terms` says so of single ones.
    """

    students: tuple[str, ...] = ("head", "encoder", "adapter", "soft")
    enough_coverage: float = 0.8
    hours: float = 0.0
    encoder: str = "minilm-l6-v2"
    encoder_tokens: int = 2_000_000
    base: str = "smollm2-135m-instruct"
    bases: tuple[str, ...] = ()
    schedule: str = ""
    new_exchanges: int = 0
    min_exchanges: int = 200
    max_rows: int = 2000
    train_tokens: int = 0
    holdout: int = 200
    control_rows: int = 40
    epochs: int = 3
    learning_rate: float = 1e-3
    rank: int = 16
    ranks: tuple[int, ...] = ()
    alpha_hard: float = 0.5
    max_tokens: int = 512
    layers: int = 0
    seed: int = 0
    threads: int = 0
    rationale_budget: float = 0.0
    rationale_share: float = 0.2
    repeat_budget: float = 0.0
    repeat_share: float = 0.1
    repeat_margin: float = 0.2
    init: str = "base"
    replay_share: float = 0.2
    half_life_days: float = 0.0
    class_balance: float = 0.0
    language_temperature: float = 1.0
    snapshots: str = "all"
    terms: str = "warn"
    provider_terms: dict[str, str] = field(default_factory=dict)
    teacher_terms_ack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """`[serving]`: the engines; `device` is cpu or gpu, `args` go to vLLM as they are, `small_port` is the other's."""

    device: str = "cpu"
    port: int = 8100
    small_port: int = 8101
    max_model_len: int = 2048
    kv_cache_gb: int = 1
    max_lora_rank: int = 16
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """`[edge]`: llama.cpp, for exported students; `context` in tokens, prompt and answer together."""

    port: int = 8200
    context: int = 2048
    threads: int = 0


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """`[signing]`: of students; files with Ed25519 keys in PEM, or the variable that holds the private one."""

    key: str = ""
    key_env: str = ""
    public_key: str = ""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """`[export]`: `compressor` is the path of a Python that has llm-compressor, in an environment of its own."""

    compressor: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """One settings file; `home` holds everything Stillroom writes, relative to the file."""

    home: str = "stillroom-data"
    proxy: ProxySettings = field(default_factory=ProxySettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    redaction: Redaction = field(default_factory=Redaction)
    spool: SpoolSettings = field(default_factory=SpoolSettings)
    log: LogSettings = field(default_factory=LogSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    money: MoneySettings = field(default_factory=MoneySettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    signing: SigningSettings = field(default_factory=SigningSettings)
    export: ExportSettings = field(default_factory=ExportSettings)

    @property
    def folder(self) -> Path:
        """Where everything is kept."""
        return Path(self.home)

    @property
    def spool_folder(self) -> Path:
        """The workers' segments."""
        return self.folder / "spool"

    @property
    def policy(self) -> Path:
        """The policy the workers watch."""
        return self.folder / "state" / "policy.json"

    @property
    def keys(self) -> Path:
        """The virtual keys."""
        return self.folder / "keys.json"

    @property
    def limits(self) -> Path:
        """What limited keys have used."""
        return self.folder / "limits"

    @property
    def tenant_salt(self) -> Path:
        """What the names of clients with keys of their own are made with."""
        return self.folder / "tenant.salt"

    @property
    def certificate_key(self) -> Path:
        """What certificates are signed with; a secret."""
        return self.folder / "certificate.key"

    @property
    def metrics(self) -> Path:
        """The workers' counters."""
        return self.folder / "state" / "metrics"

    @property
    def spans(self) -> Path:
        """How far spans are exported."""
        return self.folder / "state" / "spans"

    @property
    def engine_state(self) -> Path:
        """What the controller last knew of vLLM, with the base model it was started with first."""
        return self.folder / "state" / "engine.json"

    @property
    def more_engine_states(self) -> list[Path]:
        """What it last knew of vLLM with other base models, as far as it was started with any."""
        return sorted((self.folder / "state").glob("engine-*.json"))

    @property
    def small_state(self) -> Path:
        """What it last knew of the server of small students."""
        return self.folder / "state" / "small.json"

    @property
    def students(self) -> Path:
        """The bundles."""
        return self.folder / "students"

    @property
    def exports(self) -> Path:
        """What was made of students for other engines."""
        return self.folder / "exports"


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
        named |= {f"prices.{model!r}.{kind}": dollars for kind, dollars in asdict(price).items() if dollars is not None}
    for name, dollars in named.items():
        if not 0 <= dollars < math.inf:
            raise BadInput(f"money.{name} must be US dollars, 0 or more, not {dollars}")


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
