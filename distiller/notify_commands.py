"""Owns the command that shows whether notices arrive. Heavy imports wait inside it."""

import argparse
from typing import Any

from distiller.command_tools import show
from distiller.settings_file import load_settings
from proxy.errors import BadInput


def notify(arguments: argparse.Namespace) -> int:
    """Send a notice that says it is a test over every channel of `[notify]`."""
    import asyncio
    from datetime import UTC, datetime

    from distiller.channels import channels
    from distiller.notice import trial
    from proxy.errors import Unavailable

    found = channels(load_settings(arguments.config).notify)
    if not found:
        raise BadInput("nobody would be told: set notify.webhook, or notify.mail_to with notify.smtp_host")

    async def send() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        for channel in found:
            try:
                await channel.send(trial(datetime.now(UTC)))
                told.append({"channel": channel.name, "taken": True, "problem": None})
            except Unavailable as error:
                told.append({"channel": channel.name, "taken": False, "problem": str(error)})
        return told

    told = asyncio.run(send())
    show(arguments, told, _lines)
    return 0 if all(one["taken"] for one in told) else 1


def _lines(told: list[dict[str, Any]]) -> None:
    for one in told:
        print(f"{one['channel']}: {'taken' if one['taken'] else one['problem']}")
