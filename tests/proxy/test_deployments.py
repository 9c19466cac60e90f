import re
from dataclasses import replace
from typing import Any

import pytest

from proxy.deployments import connect
from proxy.errors import BadInput
from proxy.failover import Failover
from proxy.settings import DeploymentSettings, TeacherSettings
from proxy.upstream import Teacher
from tests.proxy.test_upstream import recording
from tests.servers import free_port

CLIENT = [(b"Authorization", b"Bearer sk-client"), (b"X-Api-Key", b"sk-client"), (b"api-key", b"sk-client")]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY_A", "sk-a")
    monkeypatch.setenv("TEST_KEY_B", "sk-b")
    monkeypatch.setenv("TEST_KEY_EMPTY", "")


def names(upstream: Any) -> list[str]:
    assert isinstance(upstream, Failover)
    return [health.deployment for health in upstream.health()]


async def test_one_deployment_without_retries_is_the_plain_teacher() -> None:
    assert type(connect(TeacherSettings())) is Teacher
    assert type(connect(TeacherSettings(retries=1))) is Failover
    assert (
        type(connect(TeacherSettings(deployments=(DeploymentSettings("http://other", client_keys=True),)))) is Failover
    )


async def test_each_deployment_gets_its_own_key_and_no_clients_credentials() -> None:
    async with recording() as (url, got):
        down = TeacherSettings(url=f"http://127.0.0.1:{free_port()}", key_env="TEST_KEY_A")
        upstream = connect(replace(down, deployments=(DeploymentSettings(url + "/eu/v1", "TEST_KEY_B"),)))
        response = await upstream.forward("POST", "/v1/x", CLIENT, b"{}")
        assert await response.read() == b"ok"
        assert response.deployment == url.removeprefix("http://")
        upstream.close()
    assert got[0].startswith(b"POST /eu/v1/x HTTP/1.1\r\n")
    assert re.findall(rb"sk-\w+", got[0]) == [b"sk-b"]


async def test_clients_keys_go_to_a_further_host_where_that_was_said() -> None:
    async with recording() as (url, got):
        down = TeacherSettings(url=f"http://127.0.0.1:{free_port()}")
        upstream = connect(replace(down, deployments=(DeploymentSettings(url, client_keys=True),)))
        assert await (await upstream.forward("POST", "/v1/x", CLIENT, b"{}")).read() == b"ok"
        upstream.close()
    assert re.findall(rb"sk-\w+", got[0]) == [b"sk-client"] * 3


@pytest.mark.parametrize(
    ("key_env", "further", "retries", "says"),
    [
        ("", DeploymentSettings("http://b"), 0, r"deployments\[0\] would get clients' own keys: set client_keys"),
        ("", DeploymentSettings("http://b", "TEST_KEY_B"), 0, r"deployments\[0\].key_env would let clients without"),
        ("TEST_KEY_A", DeploymentSettings("http://b"), 0, r"deployments\[0\] needs a key_env"),
        ("TEST_KEY_A", DeploymentSettings("http://b", client_keys=True), 0, r"deployments\[0\] needs a key_env"),
        ("TEST_KEY_A", DeploymentSettings("http://b", "TEST_KEY_B", client_keys=True), 0, "client_keys"),
        ("TEST_KEY_A", DeploymentSettings("http://b", "NO_SUCH_KEY"), 0, "names NO_SUCH_KEY, which is not set"),
        ("TEST_KEY_A", DeploymentSettings("http://b", "TEST_KEY_EMPTY"), 0, "names TEST_KEY_EMPTY, which is not set"),
        ("TEST_KEY_A", DeploymentSettings("http://b", "TEST_KEY_B"), -1, "retries must be 0 or more"),
        ("TEST_KEY_A", DeploymentSettings("", "TEST_KEY_B"), 0, "is no http"),
        ("TEST_KEY_A", DeploymentSettings("ftp://b", "TEST_KEY_B"), 0, "is no http"),
    ],
)
def test_what_could_leak_a_key_or_cannot_work_is_refused(
    key_env: str, further: DeploymentSettings, retries: int, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        connect(TeacherSettings(key_env=key_env, retries=retries, deployments=(further,)))


async def test_names_are_hosts_told_apart_and_without_secrets() -> None:
    further = [
        DeploymentSettings("https://user:hunter2@eu.example.com/v1?key=hunter2", "TEST_KEY_B"),
        DeploymentSettings("https://api.openai.com/v1", "TEST_KEY_B"),
        DeploymentSettings("http://10.0.0.1:8000", "TEST_KEY_B"),
    ]
    upstream = connect(TeacherSettings(key_env="TEST_KEY_A", deployments=tuple(further)))
    assert names(upstream) == ["api.openai.com#1", "eu.example.com", "api.openai.com#2", "10.0.0.1:8000"]


async def test_times_apply_to_every_deployment() -> None:
    first = TeacherSettings(key_env="TEST_KEY_A", connect_timeout=1.5, read_timeout=2.5)
    upstream = connect(replace(first, deployments=(DeploymentSettings("http://b", "TEST_KEY_B"),)))
    assert isinstance(upstream, Failover)
    clients = [each.teacher._client for each in upstream._deployments]
    assert [(each._host, each._connect_timeout, each._read_timeout) for each in clients] == [
        ("api.openai.com", 1.5, 2.5),
        ("b", 1.5, 2.5),
    ]
