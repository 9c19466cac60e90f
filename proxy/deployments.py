"""Owns how the teacher's settings become one upstream, plain or made of several deployments, and whose key goes where.

Must not know how requests fare there.
"""

import dataclasses
from urllib.parse import urlsplit

from proxy.breaker import Breaker
from proxy.errors import BadInput
from proxy.failover import Deployment, Failover
from proxy.settings import DeploymentSettings, TeacherSettings
from proxy.upstream import Teacher


def connect(settings: TeacherSettings) -> Teacher | Failover:
    """The upstream that the settings describe, not yet connected to anything.

    BadInput where a key is missing or would go where it was not meant to, or a URL is none.
    """
    deployments, retries = settings.deployments, settings.retries
    if retries < 0:
        raise BadInput("teacher.retries must be 0 or more")
    first = Teacher(settings)
    if not deployments and not retries:
        return first
    teachers = [first]
    for position, each in enumerate(deployments):
        _check_key(settings, each, f"teacher.deployments[{position}]")
        teachers.append(Teacher(dataclasses.replace(settings, url=each.url, key_env=each.key_env)))
    names = host_names([settings.url, *(each.url for each in deployments)])
    return Failover([Deployment(name, each, Breaker()) for name, each in zip(names, teachers, strict=True)], retries)


def _check_key(first: TeacherSettings, further: DeploymentSettings, place: str) -> None:
    """All deployments get keys of ours, or all get the client's: else a stranger could wait for the first to fail."""
    if first.key_env and not further.key_env:
        raise BadInput(f"{place} needs a key_env: teacher.key_env is set, so clients send no key of the teacher")
    if not first.key_env and further.key_env:
        raise BadInput(f"{place}.key_env would let clients without a key of their own in: set teacher.key_env too")
    if further.key_env and further.client_keys:
        raise BadInput(f"{place} has both key_env and client_keys: clear one of them")
    if not further.key_env and not further.client_keys:
        raise BadInput(f"{place} would get clients' own keys: set client_keys = true if its host may see them")


def host_names(urls: list[str]) -> list[str]:
    """A short name for each URL, without what may be secret in it: the host, numbered where it is there twice."""
    parts = [urlsplit(url) for url in urls]
    hosts = [f"{part.hostname}:{part.port}" if part.port else str(part.hostname) for part in parts]
    return [
        f"{host}#{hosts[: position + 1].count(host)}" if hosts.count(host) > 1 else host
        for position, host in enumerate(hosts)
    ]
