"""Owns how a student's languages look in the terminal. Must not compute a figure of its own."""

from rich.console import Console
from rich.table import Table

from distiller.languages import Group, Languages


def languages_table(found: Languages) -> None:
    """`stillroom distill`, where the task has several languages or teachers."""
    if not found.table:
        return
    table = Table(
        found.by, "teacher", "rows", "weight", "judged", "score (95 %)", "answered", "agreement there", "loss, nats",
        title="Each against its own teacher, on the holdout",
    )  # fmt: skip
    for one in found.table:
        table.add_row(*_cells(one))
    Console().print(table)


def _cells(one: Group) -> list[str]:
    score = "-" if one.score is None else f"{one.score:.3f} ({one.low:.3f}..{one.high:.3f})"
    return [
        one.name, ", ".join(one.teachers) or "-", f"{one.rows:,}", f"{one.weight:.0%}", f"{one.judged:,}", score,
        "-" if one.coverage is None else f"{one.coverage:.0%}", _number(one.agreement), _number(one.loss),
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
