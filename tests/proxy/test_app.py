import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from proxy.accounts import Accounts
from proxy.app import ProxyApp, create_app
from proxy.costs import Sizes
from proxy.counters import Counters
from proxy.gateway import Gateway, Tariff
from proxy.keys import create_key, load_key_ring
from proxy.replay import create_replay
from proxy.settings import DeploymentSettings, ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import closed_segments
from proxy.traffic_file import Row
from tests.servers import eventually, free_port, serving

ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": "greet"}]}


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with serving(create_replay([Row(tuple(ASK["messages"]), "hello", None, "gpt-4o", None)])) as url:  # type: ignore[arg-type]
        yield url


def app_for(teacher: str, spool: Path, rotate_seconds: float = 3600, **more: Any) -> ProxyApp:
    return create_app(
        ProxySettings(), TeacherSettings(url=teacher), SpoolSettings(rotate_seconds=rotate_seconds), spool, **more
    )


def recorded(spool: Path) -> list[str]:
    lines = [line for segment in closed_segments(spool) for line in segment.read_bytes().split(b"\n") if line]
    return [json.loads(line)["path"] for line in lines]


def test_health_is_answered_without_the_teacher_and_not_recorded(tmp_path: Path) -> None:
    with serving(app_for(f"http://127.0.0.1:{free_port()}", tmp_path)) as url:
        health = httpx.get(url.replace("/v1", "/healthz"))
        other = httpx.get(url.replace("/v1", "/nothing"))
    assert (health.status_code, health.json(), other.status_code) == (200, {"status": "ok"}, 404)
    assert recorded(tmp_path) == []


def test_old_segments_close_while_the_app_serves(teacher: str, tmp_path: Path) -> None:
    with serving(app_for(teacher, tmp_path, rotate_seconds=0.05)) as url:
        httpx.post(f"{url}/chat/completions", json=ASK)
        assert eventually(lambda: recorded(tmp_path)) == ["/v1/chat/completions"]


def test_stopping_closes_the_young_segment(teacher: str, tmp_path: Path) -> None:
    with serving(app_for(teacher, tmp_path)) as url:
        httpx.get(f"{url}/models")
        assert recorded(tmp_path) == []
    assert recorded(tmp_path) == ["/v1/models"]


def test_every_request_is_captured_opted_out_or_dropped(teacher: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    app = app_for(teacher, spool)
    with serving(app) as url:
        for capture in ("on", "off", "off"):
            httpx.post(f"{url}/chat/completions", json=ASK, headers={"x-stillroom-capture": capture})
        httpx.post(f"{url}/chat/completions", content=b"{nope")
    with serving(app) as url:  # The same counters, with a spool that cannot be opened.
        shutil.rmtree(spool)
        spool.write_text("in the way")
        assert httpx.post(f"{url}/chat/completions", json=ASK).status_code == 200
        httpx.post(f"{url}/chat/completions", json=ASK, headers={"x-stillroom-capture": "off"})
    assert app.relay is not None
    value = app.relay._counters.registry.get_sample_value
    kept = [value(f"stillroom_{name}_total") for name in ("requests", "captured", "opted_out")]
    assert (*kept, value("stillroom_dropped_total", {"reason": "spool"})) == (6, 2, 3, 1)


def test_what_deciding_needs_is_open_while_the_app_serves(teacher: str, tmp_path: Path) -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[None]:
        events.append("opened")
        yield
        events.append("closed")

    with TestClient(app_for(teacher, tmp_path, running=running)) as client:
        events.append(client.get("/healthz").json()["status"])
    assert events == ["opened", "ok", "closed"]


def test_no_api_pages_are_served_in_front_of_production(tmp_path: Path) -> None:
    with TestClient(app_for("http://127.0.0.1:1", tmp_path)) as client:
        assert [client.get(path).status_code for path in ("/openapi.json", "/docs", "/redoc")] == [404, 404, 404]


@pytest.mark.parametrize("stream", [True, False])
def test_a_key_that_was_said_reaches_no_file(stream: bool, tmp_path: Path) -> None:
    key = "ghp_" + "a1B2" * 9
    said = [{"role": "user", "content": f"my token is {key}"}]
    with serving(create_replay([Row(tuple(said), f"your token is {key}", None, "gpt-4o", None)])) as teacher:
        with serving(app_for(teacher, tmp_path)) as url:
            asked = {"model": "gpt-4o", "messages": said, "stream": stream}
            answer = httpx.post(f"{url}/chat/completions?token={key}", json=asked, headers={"authorization": key})
    assert answer.status_code == 200
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"[SECRET_1]" in written
    assert key.encode() not in written


def test_with_keys_only_their_holders_are_heard(teacher: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = create_key(file, "billing-bot", ())
    silent = create_key(file, "silent-bot", (), capture=False)
    ring, accounts = load_key_ring(file), Accounts(tmp_path / "limits")
    tariff = Tariff(lambda *_: None, lambda _: Sizes(1000, 1000))
    app = app_for(teacher, tmp_path / "spool", admit=Gateway(lambda: ring, accounts, tariff))
    with serving(app) as url:
        anonymous = httpx.post(f"{url}/chat/completions", json=ASK)
        known = httpx.post(f"{url}/chat/completions", json=ASK, headers={"authorization": f"Bearer {secret}"})
        unseen = httpx.post(f"{url}/chat/completions", json=ASK, headers={"x-api-key": silent})
    accounts.close()
    assert (anonymous.status_code, anonymous.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (known.status_code, unseen.status_code) == (200, 200)
    assert recorded(tmp_path / "spool") == ["/v1/chat/completions"]
    written = b"".join(segment.read_bytes() for segment in closed_segments(tmp_path / "spool"))
    assert secret.encode() not in written


def test_it_is_ready_while_it_takes_traffic_whatever_the_teacher_does(tmp_path: Path) -> None:
    app = app_for(f"http://127.0.0.1:{free_port()}", tmp_path)
    before = TestClient(app).get("/readyz")  # Without its lifespan.
    with TestClient(app) as client:
        during = client.get("/readyz")
        app.draining = lambda: True
        draining = client.get("/readyz")
    assert [answer.status_code for answer in (before, during, draining)] == [503, 200, 503]
    assert [answer.json()["status"] for answer in (before, during, draining)] == ["stopping", "ready", "stopping"]


def test_what_was_counted_is_written_at_the_end(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Counters] = []
    monkeypatch.setattr("proxy.app.Counters", lambda: made.append(Counters()) or made[0])
    with TestClient(app_for(teacher, tmp_path)) as client:
        client.get("/v1/models")
        client.get("/v1/models", headers={"x-stillroom-capture": "off"})
    value = made[0].registry.get_sample_value
    ended = [sample.value for metric in made[0].registry.collect() for sample in metric.samples
             if sample.name == "stillroom_exchanges_total"]  # fmt: skip
    assert (value("stillroom_requests_total"), sum(ended), value("stillroom_in_progress")) == (2, 2, 0)
    assert value("stillroom_captured_total") == value("stillroom_opted_out_total") == 1


def test_it_counts_aloud_every_second(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.app.FLUSH_SECONDS", 0.01)
    made: list[Counters] = []
    monkeypatch.setattr("proxy.app.Counters", lambda: made.append(Counters()) or made[-1])
    deployments = (DeploymentSettings(f"http://127.0.0.1:{free_port()}", client_keys=True),)
    settings = TeacherSettings(teacher, deployments=deployments)
    with serving(create_app(ProxySettings(), settings, SpoolSettings(), tmp_path)) as url:
        httpx.post(f"{url}/chat/completions", json=ASK)
        value = made[0].registry.get_sample_value
        eventually(lambda: value("stillroom_request_bytes_total"))
        host = deployments[0].url.removeprefix("http://")
        assert value("stillroom_deployment_open", {"deployment": host}) == 0
