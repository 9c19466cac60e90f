import socket
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.check_ports import check_ports
from distiller.finding import FIX, OK, WARN, Finding
from distiller.settings import ServingSettings, Settings
from proxy.settings import AdminSettings, ProxySettings, TeacherSettings
from router.controller import only_one
from tests.servers import free_port


def found(settings: Settings) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_ports(settings)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=str(tmp_path),
        proxy=ProxySettings(port=free_port()),
        admin=AdminSettings(port=free_port()),
        serving=ServingSettings(port=free_port(), small_port=free_port()),
    )


def test_free_ports_are_fine(settings: Settings) -> None:
    assert {finding.level for finding in check_ports(settings)} == {OK}


def test_a_port_of_somebody_else_is_told_from_our_own(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.serving.small_port)):
        taken = found(settings)["serving.small_port"]
        assert (taken.level, "set serving.small_port to another" in taken.detail) == (FIX, True)
        with only_one(settings.folder):
            assert found(settings)["serving.small_port"].level == OK


def test_an_open_proxy_with_our_key_is_told(settings: Settings) -> None:
    teacher = TeacherSettings(key_env="PATH")
    exposed = replace(settings, proxy=replace(settings.proxy, host="0.0.0.0"), teacher=teacher)
    assert found(exposed)["clients"].level == WARN
    assert found(replace(exposed, proxy=replace(exposed.proxy, keys=True)))["clients"].level == OK
    assert found(replace(exposed, teacher=TeacherSettings()))["clients"].level == OK


def test_operators_from_elsewhere_need_a_token(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "x")
    monkeypatch.setenv("LONG", "x" * 40)
    levels = [
        found(replace(settings, admin=replace(settings.admin, host="0.0.0.0", token_env=name)))["admin token"].level
        for name in ("", "SHORT", "LONG")
    ]
    assert levels == [FIX, WARN, OK]
