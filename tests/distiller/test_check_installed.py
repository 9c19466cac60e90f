import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distiller.check_installed import check_installed
from distiller.finding import FIX, OK, WARN, Finding
from distiller.schedule_settings import ScheduleSettings, TaskScheduleSettings
from distiller.settings import DistillerSettings, ExportSettings, Settings
from proxy.patterns import Redaction
from proxy.settings import TelemetrySettings


def found(settings: Settings) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_installed(settings)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=str(tmp_path))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Packages that are as if they were not installed."""
    real = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name.split(".")[0] in names else real(name)
        )

    return hide


def test_what_trains_by_itself_needs_what_trains(settings: Settings, without: Any) -> None:
    assert found(settings)["training"].level == OK
    without("torch", "vllm")
    assert found(settings)["training"] == Finding("training", WARN, "missing torch: pip install 'stillroom[distill]'")
    scheduled = replace(settings, distiller=DistillerSettings(schedule="0 3 * * 0"))
    assert found(scheduled)["training"].level == FIX
    on_drift = replace(settings, schedule=ScheduleSettings(tasks={"t": TaskScheduleSettings(drift=True)}))
    assert found(on_drift)["training"].level == FIX
    assert found(settings)["serving"].detail == "missing vllm: pip install 'stillroom[serve-cpu]'"


def test_what_the_settings_ask_for_must_be_there(settings: Settings, without: Any) -> None:
    asking = replace(
        settings, redaction=Redaction(names=True), telemetry=TelemetrySettings(spans=True),
        export=ExportSettings(compressor="/no/such/python"),
    )  # fmt: skip
    without("presidio_analyzer", "opentelemetry", "textual")
    seen = found(asking)
    assert [seen[what].level for what in ("names", "spans", "compressor")] == [FIX, FIX, FIX]
    assert "stillroom[otel]" in seen["spans"].detail
    assert "top (`stillroom top`)" in seen["extras"].detail
    assert "otel" in seen["extras"].detail


def test_models_are_looked_for_and_never_fetched(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bases" / "models--somebody--here").mkdir(parents=True)
    named = replace(
        settings,
        distiller=DistillerSettings(
            base=str(tmp_path / "empty"), bases=("somebody/away", "somebody/here"), encoder="x/y"
        ),
    )
    models = [finding for finding in check_installed(named) if finding.what.endswith("model")]
    assert [(one.what, one.level) for one in models] == [
        ("encoder model", WARN), ("base model", FIX), ("base model", WARN), ("base model", OK),
    ]  # fmt: skip
    small = replace(settings, distiller=DistillerSettings(students=("head",)))
    assert "base model" not in found(small)
