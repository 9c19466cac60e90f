"""Owns how findings look in the terminal: a line each, the level in words, and a last line that counts them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.console import Console
from rich.markup import escape

from distiller.finding import FIX, OK, WARN, Finding

_COLOURS: Mapping[str, str] = MappingProxyType({OK: "green", WARN: "yellow", FIX: "bold red"})


def findings_table(findings: Sequence[Finding]) -> None:
    """`stillroom doctor`."""
    console = Console(highlight=False)
    for one in findings:
        told = f"{escape(one.what)}: {escape(one.detail)}"
        console.print(f"[{_COLOURS[one.level]}]{one.level:<4}[/]  {told}", soft_wrap=True)
    counts = Counter(one.level for one in findings)
    console.print(f"{counts[FIX]} to fix, {counts[WARN]} to look at, {counts[OK]} in order")
