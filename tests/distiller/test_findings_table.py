import pytest

from distiller.finding import FIX, OK, WARN, Finding
from distiller.findings_table import findings_table


def test_levels_are_words_and_the_last_line_counts(capsys: pytest.CaptureFixture[str]) -> None:
    findings_table([Finding("disk", OK, "[bold]9 GB"), Finding("log", WARN, "old"), Finding("port", FIX, "x" * 200)])
    assert capsys.readouterr().out.splitlines() == [
        "ok    disk: [bold]9 GB", "warn  log: old", f"fix   port: {'x' * 200}", "1 to fix, 1 to look at, 1 in order",
    ]  # fmt: skip
