from pathlib import Path

import pytest

from distiller.doctor import examine
from proxy.log import open_log
from proxy.migrations import MIGRATIONS, migrate
from proxy.settings import LogSettings


def test_a_sound_set_up_has_only_good_findings(tmp_path: Path) -> None:
    config = tmp_path / "stillroom.toml"
    config.write_text('home = "home"')
    assert [finding.what for finding in examine(config) if not finding.ok] == []
    migrate(open_log(LogSettings(), tmp_path / "home"))
    assert {finding.what: finding.detail for finding in examine(config)}[
        "log"
    ] == f"version {len(MIGRATIONS)} of {len(MIGRATIONS)}"


def test_bad_settings_are_all_there_is_to_say(tmp_path: Path) -> None:
    (finding,) = examine(tmp_path / "missing.toml")
    assert (finding.what, finding.ok) == ("settings", False)
    assert "deploy/stillroom.toml" in finding.detail


def test_a_missing_key_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    config = tmp_path / "stillroom.toml"
    config.write_text('[teacher]\nkey_env = "NO_SUCH_KEY"')
    (finding,) = examine(config)
    assert "NO_SUCH_KEY, which is not set" in finding.detail


def test_a_language_that_cannot_be_told_is_found_before_a_worker_finds_it(tmp_path: Path) -> None:
    config = tmp_path / "stillroom.toml"
    config.write_text('[teacher.named.x]\nurl = "http://x"\n[teacher.tasks.t]\nteachers = { qq = "x" }')
    (finding,) = examine(config)
    assert "teacher.tasks.t has languages that cannot be told: qq" in finding.detail
