"""Owns the commands about money: the ledger of a period in any format, and whether a bill agrees. Must not reckon."""

import argparse
import json
import math
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from distiller.command_tools import opened_log
from distiller.settings_file import load_settings
from proxy.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from distiller.statement import Statement


def report(arguments: argparse.Namespace) -> int:
    """Show what was spent, avoided and saved."""
    from distiller.statement import statement
    from distiller.statement_formats import FORMATS
    from distiller.statement_table import statement_table

    since, until = period(arguments.month, arguments.since, arguments.to)
    wanted = "json" if arguments.json else arguments.format
    if wanted == "pdf" and arguments.output is None:
        raise BadInput("a PDF goes into a file: --output ledger.pdf")
    if wanted == "table" and arguments.output is not None:
        raise BadInput("a table is for the terminal: say which file it shall be, --format html, pdf, csv or json")
    settings = load_settings(arguments.config)
    made: Statement = statement(
        opened_log(settings, read_only=True), since, until, settings.router.slice_floor, datetime.now(UTC)
    )
    if wanted == "table":
        statement_table(made)
    else:
        _put(FORMATS[wanted](made), arguments.output)
    return 0


def reconcile(arguments: argparse.Namespace) -> int:
    """Compare the log with a provider's own account of what was used."""
    from distiller.reconcile_table import as_data, reconcile_table
    from distiller.usage_export import read_export
    from router.reconciling import reconcile as run

    if not 0 <= arguments.tolerance < math.inf:
        raise BadInput(f"--tolerance is a share, 0 or more, such as 0.01, not {arguments.tolerance}")
    export = read_export(arguments.file)
    if not export.used:
        raise BadInput(f"{arguments.file} says of no day that anything was used")
    found = run(opened_log(load_settings(arguments.config), read_only=True), export.used)
    print(json.dumps(as_data(export, found), indent=1)) if arguments.json else reconcile_table(export, found)
    return 1 if found.share > arguments.tolerance else 0


def period(month: str, since: str, to: str) -> tuple[date | None, date | None]:
    """The first day and the day after the last; None is without end. BadInput for what is none."""
    if month and (since or to):
        raise BadInput("--month is a period already: leave --from and --to out")
    if month:
        try:
            first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
        except ValueError:
            raise BadInput(f"--month is one such as 2026-11, not {month!r}") from None
        return first, (first + timedelta(days=31)).replace(day=1)
    first_day, last = _day("--from", since), _day("--to", to)
    if first_day and last and last < first_day:
        raise BadInput(f"--to {last} is before --from {first_day}")
    return first_day, last and last + timedelta(days=1)


def _day(option: str, text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise BadInput(f"{option} is a day such as 2026-11-01, not {text!r}") from None


def _put(content: bytes, file: Path | None) -> None:
    if file is None:
        sys.stdout.write(content.decode())
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}") from None
