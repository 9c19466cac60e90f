"""Owns the command that looks ahead: what distilling a task would bring. Must not reckon: it asks and prints."""

import argparse

from distiller.command_tools import opened_log, show
from distiller.settings import load_settings


def forecast(arguments: argparse.Namespace) -> int:
    """Tell whether a task is worth distilling, from the log alone."""
    from distiller.forecast import forecast as run
    from distiller.forecast_table import forecast_table

    settings = load_settings(arguments.config)
    return show(arguments, run(opened_log(settings, read_only=True), settings, arguments.task), forecast_table)
