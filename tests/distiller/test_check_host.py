import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.check_host import FILES, check_host
from distiller.finding import FIX, OK, WARN
from distiller.settings import Settings, SigningSettings
from proxy.keys import create_key
from proxy.settings import SpoolSettings
from proxy.tenants import tenant_salt


@pytest.fixture
def open_files() -> Iterator[None]:
    """Whatever a test sets is undone."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def levels(settings: Settings) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.level, finding.detail) for finding in check_host(settings)}


def test_secrets_must_be_for_their_owner_alone(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    assert levels(settings)["secrets"] == (OK, "none on disk yet")
    tenant_salt(settings.tenant_salt)
    create_key(settings.keys, "bot", ())
    assert levels(settings)["secrets"] == (OK, "for their owner alone: tenant.salt, keys.json")
    settings.tenant_salt.chmod(0o640)
    level, detail = levels(settings)["secrets"]
    assert (level, detail.endswith(f"chmod 600 {settings.tenant_salt}")) == (FIX, True)
    settings.tenant_salt.chmod(0o600)
    key = tmp_path / "key.pem"
    key.touch(0o644)
    key.chmod(0o644)
    assert str(key) in levels(replace(settings, signing=SigningSettings(key=str(key))))["secrets"][1]


def test_a_disk_below_the_mark_is_no_place_to_record(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path / "not" / "there"))
    assert levels(settings)["disk"][0] == OK
    level, detail = levels(replace(settings, spool=SpoolSettings(min_free_mb=1 << 40)))["disk"]
    assert (level, "nothing is recorded" in detail) == (FIX, True)


@pytest.mark.usefixtures("open_files")
def test_few_open_files_are_told_with_the_remedy(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    assert levels(Settings(home=str(tmp_path)))["open files"][0] == OK
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    level, detail = levels(Settings(home=str(tmp_path)))["open files"]
    assert (level, "ulimit -n" in detail) == (WARN, True)
