"""Owns the answers that a benchmark keeps, one student a line of JSON, so that its tables can be made again from them.

Must not know what a line says.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def add_source(parser: argparse.ArgumentParser) -> None:
    """`--data`, or in its place `--answers`; and `--keep`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of sets")
    source.add_argument("--answers", type=Path, help="what --keep wrote")
    parser.add_argument("--keep", type=Path)


def read(file: Path) -> list[Line]:
    """What was kept there."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def keeping(file: Path | None) -> Callable[[Line], Line]:
    """What adds a line to the file, where there is one, and gives it back."""

    def kept(line: Line) -> Line:
        if file:
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        return line

    return kept
