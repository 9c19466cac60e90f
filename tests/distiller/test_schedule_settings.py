import pytest

from distiller.schedule_settings import (
    NotifySettings,
    ScheduleSettings,
    TaskScheduleSettings,
    check_notify,
    check_schedule,
)
from proxy.errors import BadInput


def test_the_defaults_are_fine() -> None:
    check_schedule(ScheduleSettings())
    check_notify(NotifySettings())


def test_what_people_set_is_fine() -> None:
    tasks = {"a": TaskScheduleSettings("0 3 * * 6", 0, True, False)}
    check_schedule(ScheduleSettings("Europe/Berlin", "22:00-06:00", ("0", "GPU-1a"), 0, 0.5, "skip", tasks=tasks))
    check_notify(
        NotifySettings(
            "https://example.com/hook", "SECRET", ("a@example.com",), "b@example.com", "mail.example.com",
            smtp_user="b", smtp_password_env="PASSWORD", events=("rollback",), sunset_days=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timezone": "Mars"}, r"schedule\.timezone 'Mars' is unknown"),
        ({"timezone": "../etc/passwd"}, r"schedule\.timezone .* is unknown"),
        ({"quiet_hours": "8-20"}, r"schedule\.quiet_hours is from-to"),
        ({"quiet_hours": "25:00-06:00"}, r"schedule\.quiet_hours is from-to"),
        ({"quiet_hours": "06:00-06:00"}, r"schedule\.quiet_hours is from-to"),
        ({"missed": "never"}, r"schedule\.missed must be"),
        ({"retries": -1}, r"schedule\.retries must be 0"),
        ({"retry_minutes": 0.0}, r"schedule\.retry_minutes above 0"),
        ({"retry_minutes": float("nan")}, r"schedule\.retry_minutes above 0"),
        ({"certificate_days": -1}, r"schedule\.certificate_days must be"),
        ({"gpus": ("0", "0")}, r"schedule\.gpus are"),
        ({"gpus": ("0 1",)}, r"schedule\.gpus are"),
        ({"tasks": {"a": TaskScheduleSettings(new_exchanges=-1)}}, r"schedule\.tasks\.a\.new_exchanges must be"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        check_schedule(ScheduleSettings(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"webhook": "example.com"}, r"notify\.webhook must start with"),
        ({"mail_to": ("a@example.com",)}, r"notify\.mail_to needs"),
        ({"smtp_password_env": "P"}, r"needs notify\.smtp_user"),
        ({"smtp_password_env": "P", "smtp_user": "a", "smtp_starttls": False}, "never goes in the clear"),
        ({"mail_from": "a@example.com\nBcc: b@example.com"}, "without line breaks"),
        ({"timeout": 0.0}, r"notify\.timeout must be"),
        ({"events": ("rollback", "rain")}, r"notify\.events has 'rain': there are promotion"),
    ],
)
def test_a_channel_that_cannot_work_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        check_notify(NotifySettings(**changes))  # type: ignore[arg-type]
