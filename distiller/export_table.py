"""Owns what people read of exports: a table. Must not compute a figure of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from distiller.export import Exported


def exports_table(made: Sequence[Exported]) -> None:
    """`stillroom export`: a line an artefact, its size beside that of the same weights in bfloat16."""
    columns = ("artefact", "MB", "of bf16", "score", "student's", "kept", "rows", "tokens/s", "peak MB", "")
    table = Table(*columns, title="Exports")
    for one in made:
        size, share = f"{one.size / 1e6:.1f}", f"{one.size / one.bf16_size:.0%}"
        said = "refused" if not one.passed else "made" if one.fresh else "was there"
        table.add_row(one.kind, size, share, *_proved(one.proof), said)
    console = Console()
    console.print(table)
    for one in made:
        if one.folder:
            console.print(f"{one.kind}: {one.folder}", soft_wrap=True)


def _proved(proof: Mapping[str, Any] | None) -> list[str]:
    if proof is None:
        return ["-"] * 6
    rows = str(proof["rows"]) + (f" ({proof['gone']} gone)" if proof["gone"] else "")
    peak = "?" if proof["peak_bytes"] is None else f"{proof['peak_bytes'] / 1e6:.0f}"
    scores = (f"{proof['score']:.4f}", f"{proof['student']:.4f}", f"{proof['kept']:.2%}")
    return [*scores, rows, f"{proof['speed']:.0f}", peak]
