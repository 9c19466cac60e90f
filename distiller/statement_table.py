"""Owns the ledger in the terminal. Must not compute a figure of its own."""

from rich.console import Console
from rich.table import Table

from distiller.printable import printable
from distiller.statement import NONE_PASSED, Section, Statement, sections
from distiller.terminal import money, report_table

_SHOWN = ("Students",)  # of the tables, where there is something in them; all of them are in the other formats


def statement_table(one: Statement) -> None:
    """`stillroom report`."""
    console = Console()
    report_table(one.report)
    passed = any(line.rival for line in one.report.tasks)
    console.print(
        f"= {money(one.report.rival_net_usd) if passed else NONE_PASSED} against the cheapest hosted model that passes"
    )
    if one.report.busy_hours or one.report.idle_hours:
        console.print(f"the engine was busy {one.report.busy_hours:,.2f} h, idle {one.report.idle_hours:,.2f} h")
    for section in sections(one):
        if section.title in _SHOWN and section.rows:
            console.print(_table(section))
    ahead = one.forecast
    net = "unknown" if ahead.net_usd is None else money(ahead.net_usd)
    console.print(f"{ahead.month:%Y-%m} comes to a net of {net}: {ahead.basis}", soft_wrap=True)
    console.print(f"of {one.period}")


def _table(section: Section) -> Table:
    table = Table(*section.columns, title=section.title)
    for row in section.rows:
        table.add_row(*(printable(cell) for cell in row))
    return table
