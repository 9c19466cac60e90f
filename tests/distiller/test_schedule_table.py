from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from distiller.jobs import Job
from distiller.pauses import Pause
from distiller.runs import Run
from distiller.schedule_table import asked_lines, schedule_table

NOW = datetime(2026, 3, 1, 3, tzinfo=UTC)
RUN = Run(
    "01ABC", "distill:a[red]", "distill", "a[red]", "cron 1", "cron 0 3 * * 0: 312 new exchanges", 2, False, NOW, NOW,
    NOW, NOW, "ended", "failed", "killed\x1b[31m by SIGKILL", Decimal("0.25"), None, None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_jobs_and_runs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        Job("distill:a[red]", "distill", "a[red]", "500 new exchanges", None, Pause(NOW, "audit week"), RUN),
        Job("retention", "retention", None, "37 1 * * *", NOW, None, None),
        Job("distill:b", "distill", "b", "", None, None, None),
    ]
    found = {
        "controller": False, "timezone": "UTC", "quiet_hours": "08:00-20:00", "quiet_until": NOW,
        "jobs": [asdict(job) for job in jobs],
        "runs": [asdict(RUN)],
    }  # fmt: skip
    schedule_table(found)
    shown = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    assert "distill:a[red] 500 new exchanges paused: audit week 2026-03-01 03:00 failed" in lines
    assert "retention 37 1 * * * 2026-03-01 03:00 -" in lines
    assert "distill:b by hand - -" in lines
    assert any("312 new exchanges (attempt 2) failed: killed?[31m by SIGKILL $0.2500" in line for line in lines)
    assert "times in UTC; quiet hours 08:00-20:00: nothing heavy begins before 2026-03-01 03:00" in lines
    assert "no controller runs here: nothing of this happens before `stillroom serve` is started" in lines
    assert "\x1b[31m" not in shown
    schedule_table({**found, "controller": True, "runs": [], "quiet_hours": "", "quiet_until": None})
    shown = capsys.readouterr().out
    assert "no controller" not in shown
    assert "no quiet hours" in shown


def test_what_was_asked_is_confirmed(capsys: pytest.CaptureFixture[str]) -> None:
    asked_lines({"action": "run", "controller": True, "runs": [asdict(RUN)]})
    asked_lines({"action": "pause", "controller": True, "job": "retention"})
    asked_lines({"action": "resume", "controller": False, "job": "retention"})
    assert capsys.readouterr().out.splitlines() == [
        "distill:a[red] is queued, and begins when its place is free (run 01ABC)",
        "retention is paused: it begins nothing by itself",
        "retention goes on by itself",
        "no controller runs here: it is done once `stillroom serve` does",
    ]
