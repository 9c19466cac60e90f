"""Owns the settings of the schedule and of notifications, and what of them is refused. Must not know what runs."""

import math
import re
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from proxy.errors import BadInput

EVENTS = (
    "promotion", "rollback", "parity_lost", "run_failed", "certificate", "budget_80", "budget_100", "unpriced",
    "dropped", "sunset", "student_down",
)  # fmt: skip
"""What people may be told of by `[notify]`."""
QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
MISSED = ("run", "skip")


@dataclass(frozen=True, slots=True)
class TaskScheduleSettings:
    """`[schedule.tasks.NAME]`: when this task is distilled; what is not given is as for all tasks."""

    cron: str | None = None
    new_exchanges: int | None = None
    drift: bool | None = None
    teacher_change: bool | None = None


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """`[schedule]`: when jobs run, by cron expressions in `timezone` (empty: the machine's own); empty: never.

    Nothing heavy begins in the `quiet_hours`, such as "08:00-20:00". `gpus` are those that are trained on, a training
    each at once; empty: one training at a time. What failed is tried `retries` times more, first after `retry_minutes`,
    then after twice that. `missed` says what becomes of a run whose time came while no controller ran: "run", once, or
    "skip". A certificate older than `certificate_days` is looked at again; 0: never.
    """

    timezone: str = ""
    quiet_hours: str = ""
    gpus: tuple[str, ...] = ()
    retries: int = 2
    retry_minutes: float = 10.0
    missed: str = "run"
    drift: bool = False
    teacher_change: bool = False
    compaction: str = "17 * * * *"
    retention: str = "37 1 * * *"
    backup: str = "47 * * * *"
    prices: str = "7 6 * * *"
    certificates: str = "27 6 * * *"
    certificate_days: int = 90
    tasks: dict[str, TaskScheduleSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """`[notify]`: who is told of what needs a person; nobody without a `webhook` or an address in `mail_to`.

    The variables named by `webhook_secret_env` and `smtp_password_env` hold what a webhook is signed with and the
    password of `smtp_user`. `events` are those that are told, empty: all. `sunset_days` is how long before a
    model's end it is told.
    """

    webhook: str = ""
    webhook_secret_env: str = ""
    mail_to: tuple[str, ...] = ()
    mail_from: str = ""
    smtp_host: str = ""
    smtp_port: int = 587
    smtp_starttls: bool = True
    smtp_user: str = ""
    smtp_password_env: str = ""
    timeout: float = 10.0
    events: tuple[str, ...] = ()
    sunset_days: int = 30


def check_schedule(schedule: ScheduleSettings) -> None:
    """BadInput for what can be seen without a calendar; cron expressions are read where jobs are made of them."""
    if schedule.timezone:
        try:
            ZoneInfo(schedule.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise BadInput(
                f'schedule.timezone {schedule.timezone!r} is unknown: name one such as "Europe/Berlin", or leave it ""'
            ) from None
    found = QUIET.fullmatch(schedule.quiet_hours)
    if schedule.quiet_hours and (found is None or found.groups()[:2] == found.groups()[2:]):
        raise BadInput(f'schedule.quiet_hours is from-to, such as "08:00-20:00", not {schedule.quiet_hours!r}')
    if schedule.missed not in MISSED:
        raise BadInput(f'schedule.missed must be "run" or "skip", not {schedule.missed!r}')
    if schedule.retries < 0 or not 0 < schedule.retry_minutes < math.inf:
        raise BadInput("schedule.retries must be 0 or more, and schedule.retry_minutes above 0")
    if schedule.certificate_days < 0:
        raise BadInput(f"schedule.certificate_days must be 0 (never) or more, not {schedule.certificate_days}")
    if len(set(schedule.gpus)) < len(schedule.gpus) or not all(re.fullmatch(r"[\w-]+", one) for one in schedule.gpus):
        raise BadInput(f'schedule.gpus are numbers or ids of GPUs, each once, such as ["0", "1"], not {schedule.gpus}')
    for task, said in schedule.tasks.items():
        if said.new_exchanges is not None and said.new_exchanges < 0:
            raise BadInput(f"schedule.tasks.{task}.new_exchanges must be 0 (never) or more, not {said.new_exchanges}")


def check_notify(notify: NotifySettings) -> None:
    """BadInput for channels that could not work, and events there are not."""
    if notify.webhook and not notify.webhook.startswith(("http://", "https://")):
        raise BadInput("notify.webhook must start with http:// or https://")  # It may be a secret: it is not quoted.
    if notify.mail_to and not (notify.smtp_host and notify.mail_from):
        raise BadInput("notify.mail_to needs notify.smtp_host and notify.mail_from")
    if notify.smtp_password_env and not notify.smtp_user:
        raise BadInput("notify.smtp_password_env needs notify.smtp_user")
    if notify.smtp_password_env and not notify.smtp_starttls:
        raise BadInput("notify.smtp_password_env needs smtp_starttls = true: a password never goes in the clear")
    if any("\n" in text or "\r" in text for text in (notify.mail_from, *notify.mail_to)):
        raise BadInput("notify.mail_from and notify.mail_to are addresses, without line breaks")
    if not 0 < notify.timeout < math.inf or notify.sunset_days < 0:
        raise BadInput("notify.timeout must be above 0 seconds, and notify.sunset_days 0 or more")
    if unknown := sorted(set(notify.events) - set(EVENTS)):
        raise BadInput(f"notify.events has {unknown[0]!r}: there are {', '.join(EVENTS)}")
