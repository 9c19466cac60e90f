from pathlib import Path

import pytest

from distiller.doctor import examine
from distiller.finding import FIX, worst
from proxy.migrations import MIGRATIONS
from tests.logs import migrated
from tests.servers import free_port

PORTS = "[proxy]\nport = {}\n[admin]\nport = {}\n[serving]\nport = {}\nsmall_port = {}\n"


def test_nothing_needs_fixing_in_a_sound_set_up(tmp_path: Path) -> None:
    config = tmp_path / "stillroom.toml"
    config.write_text('home = "home"\n' + PORTS.format(*(free_port() for _ in range(4))))
    assert worst(examine(config)) != FIX
    migrated(tmp_path / "home").close()
    told = {finding.what: finding.detail for finding in examine(config)}
    assert told["log"] == f"version {len(MIGRATIONS)} of {len(MIGRATIONS)}"


def test_nobody_elses_server_is_asked_unless_wanted(tmp_path: Path) -> None:
    config = tmp_path / "stillroom.toml"
    ports = PORTS.format(*(free_port() for _ in range(4)))
    config.write_text(f'home = "home"\n{ports}[teacher]\nurl = "http://127.0.0.1:{free_port()}"\n')
    assert "teacher" not in {finding.what for finding in examine(config)}
    assert {finding.what: finding.level for finding in examine(config, online=True)}["teacher"] == FIX


def test_bad_settings_are_all_there_is_to_say(tmp_path: Path) -> None:
    (finding,) = examine(tmp_path / "missing.toml")
    assert (finding.what, finding.level) == ("settings", FIX)
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
