"""The words a worker counts fallbacks under, against those the router really uses."""

import ast
from pathlib import Path

import pytest

import router
from proxy.counters import OTHER, fallback_word
from router.candidates import (
    CHANGED,
    CUT_OFF,
    MALFORMED,
    TIMED_OUT,
    TOO_LONG,
    UNAVAILABLE,
    UNREACHABLE,
    UNREADABLE,
    UNSURE,
)
from router.early import TOO_SLOW

FOLDER = Path(router.__file__).parent


def reasons() -> list[str]:
    """How each text given to CandidateFailed begins, as far as it is fixed."""
    names = {
        "UNREACHABLE": UNREACHABLE, "UNSURE": UNSURE, "MALFORMED": MALFORMED, "CHANGED": CHANGED, "CUT_OFF": CUT_OFF,
        "UNAVAILABLE": UNAVAILABLE, "gone": UNAVAILABLE, "TIMED_OUT": TIMED_OUT, "UNREADABLE": UNREADABLE,
        "TOO_LONG": TOO_LONG, "TOO_SLOW": TOO_SLOW,
    }  # fmt: skip
    found = []
    for file in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "CandidateFailed":
                text = node.args[0]
                first = text.values[0] if isinstance(text, ast.JoinedStr) else text
                first = first.value if isinstance(first, ast.FormattedValue) else first
                found.append(names[first.id] if isinstance(first, ast.Name) else str(ast.literal_eval(first)))
    return found


def test_there_are_some() -> None:
    assert len(reasons()) > 8


@pytest.mark.parametrize("reason", reasons())
def test_every_reason_has_a_word(reason: str) -> None:
    assert fallback_word(reason) != OTHER
