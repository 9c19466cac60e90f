import pytest

from distiller.languages import Group, Languages
from distiller.languages_table import languages_table

SURE = Group("en", ("gpt-4o",), 1200, 0.6, 100, 0.91, 0.8, 0.97, 0.5, 0.99, 0.25)
NONE = Group("de", (), 10, 0.4, 0, None, 0, 1, None, None, None)


def test_what_is_unknown_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    languages_table(Languages("language", (SURE, NONE)))
    shown = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["en", "gpt-4o", "1,200", "60%", "100", "0.910", "(0.800..0.970)", "50%", "0.990", "0.250"] in shown
    assert ["de", "-", "10", "40%", "0", "-", "-", "-", "-"] in shown


def test_no_groups_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    languages_table(Languages("language", ()))
    assert capsys.readouterr().out == ""
