"""Owns the check of a set-up: what works, what does not, and what to do about it. Must not change anything."""

import importlib.util
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distiller.settings import Settings, load_settings
from proxy.choosing import check_choosing
from proxy.errors import StillroomError
from proxy.log import open_log
from proxy.migrations import MIGRATIONS, version
from proxy.teachers import connect_teachers
from router.prices import price_map

FREE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check; `detail` says what was found, or what to do when not `ok`."""

    what: str
    ok: bool
    detail: str


def examine(config: Path | None) -> list[Finding]:
    """All checks, in the order in which problems should be solved."""
    try:
        settings = load_settings(config)
        check_choosing(settings.teacher)
        connect_teachers(settings.teacher)
    except StillroomError as error:
        return [Finding("settings", False, str(error))]
    checks: tuple[Callable[[Settings], Finding], ...] = (_disk, _log, _port, _training, _engine, _prices)
    return [Finding("settings", True, str(config or "defaults")), *(check(settings) for check in checks)]


def _disk(settings: Settings) -> Finding:
    place = settings.folder
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    enough = free > FREE_BYTES and os.access(place, os.W_OK)
    return Finding(
        "disk", enough, f"{free >> 30} GB free under {place}" + ("" if enough else ": free 2 GB or move home")
    )


def _log(settings: Settings) -> Finding:
    if not settings.log.catalog and not (settings.folder / "log" / "catalog.sqlite").exists():
        return Finding("log", True, "not there yet; `stillroom serve` makes it")
    try:
        log = open_log(settings.log, settings.folder, read_only=True)
        found = version(log)
    except StillroomError as error:
        return Finding("log", False, str(error))
    return Finding("log", found <= len(MIGRATIONS), f"version {found} of {len(MIGRATIONS)}")


def _port(settings: Settings) -> Finding:
    with socket.socket() as probe:
        taken = probe.connect_ex((settings.proxy.host, settings.proxy.port)) == 0
    address = f"{settings.proxy.host}:{settings.proxy.port}"
    return Finding("port", True, f"{address} is " + ("answering: Stillroom, or something else" if taken else "free"))


def _training(settings: Settings) -> Finding:
    modules = ("torch", "transformers", "peft", "accelerate", "sklearn")  # small students are also served by these
    return _installed("training", modules, "pip install 'stillroom[distill]'")


def _engine(settings: Settings) -> Finding:
    return _installed("serving", ("vllm",), f"pip install 'stillroom[serve-{settings.serving.device}]'")


def _installed(what: str, modules: tuple[str, ...], remedy: str) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return Finding(what, not missing, f"missing {', '.join(missing)}: {remedy}" if missing else "installed")


def _prices(settings: Settings) -> Finding:
    try:
        return Finding("prices", True, f"{len(price_map(settings.money.prices)):,} models priced")
    except StillroomError as error:
        return Finding("prices", False, str(error))
