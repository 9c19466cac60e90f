from dataclasses import replace
from pathlib import Path

import pytest

from distiller.engine_memory import EngineMemory
from distiller.fertility import Fertility, Lengths, Spelled, Tokens
from distiller.forecast import Forecast, forecast
from distiller.forecast_table import forecast_table
from distiller.payback import Figure
from tests.distiller.test_forecast import SETTINGS, fill
from tests.logs import migrated
from tests.router.conftest import TASK


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    monkeypatch.setenv("COLUMNS", "250")
    log = migrated(tmp_path)
    fill(log, 60)
    return forecast(log, SETTINGS, TASK)


def test_what_is_unknown_is_said_and_never_zero(found: Forecast, capsys: pytest.CaptureFixture[str]) -> None:
    forecast_table(found)
    shown = capsys.readouterr().out
    assert shown.startswith(f"{TASK}: needs more exchanges: 60 of 60")
    assert "unpriced: nothing charged" in shown
    assert "a training" in shown
    assert "owner/not-here is not here yet" in shown


def test_figures_come_with_their_intervals_and_never_is_told_from_unknown(
    found: Forecast, capsys: pytest.CaptureFixture[str]
) -> None:
    money = replace(
        found.money, break_even=Figure(100, "sum", 50, None), weeks=Figure(None, "the engine costs more", never=True)
    )
    lengths = Lengths(1, 2, 3)
    base = replace(
        found.base, why="", tokens=Tokens(9, lengths, lengths, 4, 5),
        fertility=Fertility(9, "provider", 0.2, 0.3, 0.4, 1), memory=EngineMemory(1000, 2, 0.5, 0.25, 8, 2048),
        languages={"de": Spelled(7, 0.25, 0.35)},
    )  # fmt: skip
    parts = {"queue[0]": Figure(0.5, "seen")}
    forecast_table(replace(found, money=money, base=base, parts=parts, agreement=Figure(0.9, "seen", 0.8, 0.95)))
    shown = capsys.readouterr().out
    assert "100.0 (50.0 to never)" in shown
    assert "90.0% (80.0% to 95.0%)" in shown
    assert "of queue[0]" in shown
    assert "1 / 2 / 3" in shown
    assert "0.200 (teacher 0.300)" in shown
    assert "0.75 GiB" in shown
    assert "fertility, de" in shown
    assert "0.250, 0.350" in shown
    assert "│ never" in shown
