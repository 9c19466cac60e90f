import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.admin import admin_token, create_admin, serve_admin
from proxy.errors import BadInput
from proxy.settings import AdminSettings
from proxy.vitals import Observed, Vitals
from tests.servers import serving

# What one worker does; the folder has to be in the environment before prometheus_client is imported.
WORKER = """
from proxy.counters import Counters
counters = Counters()
counters.requests.inc(3)
counters.captured.inc(2)
counters.dropped.labels("spool").inc()
"""


def vitals(home: Path, **observed: Any) -> Vitals:
    return Vitals(home, home / "spool", lambda: Observed(**observed))


def counted(metrics: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)


def scraped(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_the_workers_counters_add_up_and_outlive_them(tmp_path: Path) -> None:
    for _ in range(2):
        counted(tmp_path)
    with serving(create_admin(AdminSettings(), tmp_path, vitals(tmp_path))) as url:
        answer = httpx.get(url.replace("/v1", "/metrics"))
    assert answer.headers["content-type"].startswith("text/plain")
    found = scraped(answer.text)
    assert found["stillroom_requests_total"] == 6
    assert found["stillroom_captured_total"] == 4
    assert found['stillroom_dropped_total{reason="spool"}'] == 2


async def test_it_serves_until_told_to_stop(tmp_path: Path) -> None:
    stop = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(
            serve_admin(create_admin(AdminSettings(), tmp_path, vitals(tmp_path)), listener, stop)
        )
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/healthz")
        assert answer.json() == {"status": "ok"}
        stop.set()
        await serving


@pytest.mark.parametrize("folder", ["", "not there"])
def test_without_workers_there_are_the_controllers_own(tmp_path: Path, folder: str) -> None:
    with serving(create_admin(AdminSettings(), tmp_path / folder, vitals(tmp_path, ingested=5))) as url:
        answer = httpx.get(url.replace("/v1", "/metrics"))
    assert answer.status_code == 200
    assert scraped(answer.text)["stillroom_ingested_total"] == 5
    assert "stillroom_requests_total" not in scraped(answer.text)


@pytest.mark.parametrize(
    ("observed", "status", "word"),
    [
        ({}, 503, "starting"),
        ({"last_round": 0.0}, 200, "ready"),
        ({"last_round": 0.0, "engine": "down"}, 200, "degraded"),
    ],
)
def test_it_is_ready_after_the_first_round_and_says_what_is_degraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: dict[str, Any], status: int, word: str
) -> None:
    monkeypatch.setenv("TEST_ADMIN_TOKEN", "s3cret")
    monkeypatch.setattr("proxy.vitals.DISK_BYTES", 0)
    settings = AdminSettings(token_env="TEST_ADMIN_TOKEN")
    if "last_round" in observed:  # Measured from here: the cases may have been collected long before.
        observed = {**observed, "last_round": time.time()}
    with serving(create_admin(settings, tmp_path, vitals(tmp_path, **observed))) as url:
        stranger = httpx.get(url.replace("/v1", "/readyz"))
        operator = httpx.get(url.replace("/v1", "/readyz"), headers={"authorization": "Bearer s3cret"})
    assert (stranger.status_code, stranger.json()) == (status, {"status": word})
    assert (operator.status_code, operator.json()["status"]) == (status, word)
    assert operator.json()["detail"]["degraded"] == (["engine"] if word == "degraded" else [])


def test_the_page_about_it_is_behind_the_token_and_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ADMIN_TOKEN", "s3cret")
    settings, token = AdminSettings(token_env="TEST_ADMIN_TOKEN"), {"authorization": "Bearer s3cret"}
    with serving(create_admin(settings, tmp_path, vitals(tmp_path))) as url:
        page = url.replace("/v1", "/openapi.json")
        assert httpx.get(page).status_code == 401
        paths = httpx.get(page, headers=token).json()["paths"]
        for path, about in paths.items():
            for headers in ({}, token):
                answer = httpx.get(url.removesuffix("/v1") + path, headers=headers)
                declared = about["get"]["responses"][str(answer.status_code)]["content"]
                kind = answer.headers["content-type"]
                assert any(kind.split(";")[0] == known.split(";")[0] for known in declared), (path, kind)
    assert {path: sorted(about["get"]["responses"]) for path, about in paths.items()} == {
        "/healthz": ["200"], "/readyz": ["200", "503"], "/metrics": ["200", "401"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic s3cret", 401), ("Bearer s3cret-ü", 401), ("Bearer s3cret", 200)],
)
def test_a_token_is_asked_for_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str | None, status: int
) -> None:
    monkeypatch.setenv("TEST_ADMIN_TOKEN", "s3cret")
    headers = {"authorization": header.encode()} if header else {}
    with serving(create_admin(AdminSettings(token_env="TEST_ADMIN_TOKEN"), tmp_path, vitals(tmp_path))) as url:
        assert httpx.get(url.replace("/v1", "/metrics"), headers=headers).status_code == status
        assert httpx.get(url.replace("/v1", "/healthz")).json() == {"status": "ok"}


def test_who_can_be_reached_from_elsewhere_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_ADMIN_TOKEN", raising=False)
    assert admin_token(AdminSettings()) == ""
    with pytest.raises(BadInput, match=r"admin\.host = '0\.0\.0\.0' can be reached from elsewhere"):
        admin_token(AdminSettings(host="0.0.0.0"))
    with pytest.raises(BadInput, match="TEST_ADMIN_TOKEN, which is not set"):
        admin_token(AdminSettings(token_env="TEST_ADMIN_TOKEN"))
    monkeypatch.setenv("TEST_ADMIN_TOKEN", "s3cret")
    assert admin_token(AdminSettings(host="0.0.0.0", token_env="TEST_ADMIN_TOKEN")) == "s3cret"
