"""Owns how a reconciliation is shown, to people and to scripts. Must not compute a figure of its own."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from distiller.printable import printable
from distiller.usage_export import Export
from router.reconciling import MEASURES, Line, Pair, Reconciled

_TITLES: Mapping[str, str] = MappingProxyType(
    {"requests": "requests", "prompt": "tokens in", "completion": "tokens out", "usd": "US dollars"}
)


def reconcile_table(export: Export, found: Reconciled) -> None:
    """`stillroom reconcile`: the days and models that do not agree, the whole, and why that may be."""
    console = Console()
    said = [measure for measure in MEASURES if getattr(found.total, measure) is not None]
    table = Table("day (UTC)", "model", title=f"The provider's account less the log, {found.first} to {found.last}")
    for measure in said:
        for part in ("billed", "log", "gap"):
            table.add_column(f"{_TITLES[measure]}, {part}" if part == "billed" else part, justify="right")
    off = [line for line in found.lines if not line.agrees]
    for line in off:
        table.add_row(str(line.day), printable(line.model or "(all)"), *_cells(line, said))
    table.add_row("all", "", *_cells(found.total, said), style="bold")
    console.print(table)
    console.print(f"{len(found.lines) - len(off):,} of {len(found.lines):,} days and models agree")
    columns = ", ".join(f"{what} in {name}" for what, name in export.columns.items())
    console.print(f"found {columns}", soft_wrap=True, markup=False)
    gap = "infinite: nothing was billed" if math.isinf(found.share) else f"{found.share:.2%} of what was billed"
    console.print(f"the largest gap is {gap}")
    for reason in found.reasons:
        console.print(f"* {printable(reason, 1000)}", soft_wrap=True, markup=False)


def as_data(export: Export, found: Reconciled) -> dict[str, Any]:
    """For scripts; an infinite share is null."""
    return {
        "first": str(found.first), "last": str(found.last), "columns": dict(export.columns),
        "share": None if math.isinf(found.share) else found.share, "total": _plain(found.total),
        "lines": [{"day": str(line.day), "model": line.model, **_plain(line)} for line in found.lines],
        "reasons": list(found.reasons),
    }  # fmt: skip


def _cells(line: Line, said: list[str]) -> list[str]:
    pairs = [(measure, getattr(line, measure)) for measure in said]
    return [_figure(measure)(part) for measure, pair in pairs for part in (pair.billed, pair.logged, pair.gap)]


def _figure(measure: str) -> Callable[[Decimal], str]:
    return (lambda usd: f"{usd:,.4f}") if measure == "usd" else (lambda count: f"{int(count):,}")


def _plain(line: Line) -> dict[str, Any]:
    def numbers(measure: str, pair: Pair) -> dict[str, float | int]:
        kind: Callable[[Decimal], float | int] = float if measure == "usd" else int
        return {"billed": kind(pair.billed), "log": kind(pair.logged), "gap": kind(pair.gap)}

    pairs = {measure: getattr(line, measure) for measure in MEASURES}
    return {measure: None if pair is None else numbers(measure, pair) for measure, pair in pairs.items()}
