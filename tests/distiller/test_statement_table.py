import pytest

from distiller.statement_table import statement_table
from proxy.log import Log
from tests.distiller.statements import made
from tests.router.conftest import log

__all__ = ["log"]


def test_the_terminal_shows_both_nets_the_students_and_the_month(
    log: Log, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    statement_table(made(log))
    shown = capsys.readouterr().out
    assert "= net saving $0.6800" in shown
    assert "= none passed against the cheapest hosted model that passes" in shown
    assert "the engine was busy 0.25 h, idle 0.50 h" in shown
    assert "breaks even" in shown
    assert "2026-06 comes to a net of $" in shown
    assert "of 2026-06-01 to 2026-06-30 (UTC)" in shown
