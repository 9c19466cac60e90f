"""Owns the check of a set-up: which checks there are, in the order in which problems should be solved.

Composition only; each check knows its own concern, and none changes anything.
"""

from pathlib import Path

from distiller.channels import channels
from distiller.check_host import check_host
from distiller.check_installed import check_installed
from distiller.check_log import check_log
from distiller.check_ports import check_ports
from distiller.check_running import check_running
from distiller.check_settings import check_settings
from distiller.check_teacher import check_teachers_online
from distiller.finding import FIX, OK, Finding
from distiller.jobs import check_timers
from distiller.settings import Settings
from distiller.settings_file import load_settings
from proxy.choosing import check_choosing
from proxy.errors import StillroomError
from proxy.teachers import connect_teachers
from router.judge_client import connect_judge

_CHECKS = (check_settings, check_host, check_ports, check_installed, check_running, check_log)


def examine(config: Path | None, online: bool = False) -> list[Finding]:
    """All checks, with `online` also those that ask others' servers; settings that are refused are the only finding."""
    try:
        settings = _loaded(config)
    except StillroomError as error:
        return [Finding("settings", FIX, str(error))]
    found = [Finding("settings", OK, str(config or "defaults"))]
    for check in _CHECKS:
        found += check(settings)
    return [*found, *(check_teachers_online(settings) if online else ())]


def _loaded(config: Path | None) -> Settings:
    settings = load_settings(config)
    check_choosing(settings.teacher)
    connect_teachers(settings.teacher).close()
    connect_judge(settings.judge, lambda *_: None)
    check_timers(settings)
    channels(settings.notify)
    return settings
