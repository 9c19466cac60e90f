"""Owns the settings of distilling and serving, and the whole file's: `Settings` holds every table there is."""

from dataclasses import dataclass, field
from pathlib import Path

from distiller.schedule_settings import NotifySettings, ScheduleSettings
from proxy.patterns import Redaction
from proxy.settings import (
    AdminSettings,
    LoggingSettings,
    LogSettings,
    ProxySettings,
    SpoolSettings,
    TeacherSettings,
    TelemetrySettings,
)
from router.settings import JudgeSettings, MoneySettings, RouterSettings

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
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
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
    def learning_lock(self) -> Path:
        """Who spends of a learning budget holds it."""
        return self.folder / "state" / "learning.lock"

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
    def courses(self) -> Path:
        """What distillations tell of themselves."""
        return self.folder / "state" / "courses"

    @property
    def schedule_file(self) -> Path:
        """When jobs are due; run as Python by who reads it."""
        return self.folder / "state" / "schedule.sqlite"

    @property
    def at_work(self) -> Path:
        """Its time says until when the schedule was at work."""
        return self.folder / "state" / "schedule.alive"

    @property
    def students(self) -> Path:
        """The bundles."""
        return self.folder / "students"

    @property
    def exports(self) -> Path:
        """What was made of students for other engines."""
        return self.folder / "exports"
