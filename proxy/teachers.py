"""Owns all teachers of the settings, connected: the usual one, and the named ones beside it. Who asks any, asks here.

Must not know which request is for whom. A named teacher gets its own key or none; what clients sign in with stays here.
It fails as the usual one does: a retry asks it again, and nobody else.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.breaker import Breaker
from proxy.choosing import require_choosing
from proxy.deployments import connect, host_names
from proxy.failover import Deployment, Failover, Health
from proxy.relay import Upstream
from proxy.settings import NamedTeacherSettings, TeacherSettings
from proxy.translate import translating
from proxy.upstream import Teacher


@dataclass(frozen=True, slots=True)
class Teachers:
    """Whom the log's column `teacher` names; `direct` are their connections."""

    usual: Upstream
    named: Mapping[str, Upstream] = field(default_factory=dict)
    direct: Sequence[Teacher | Failover] = ()

    def of(self, name: str | None) -> Upstream | None:
        """The teacher of that name, None naming the usual one; None where there is no such teacher any more."""
        return self.usual if name is None else self.named.get(name)

    def health(self) -> tuple[Health, ...]:
        """How the deployments look, of teachers that have several or are asked again."""
        return tuple(one for each in self.direct if isinstance(each, Failover) for one in each.health())

    def close(self) -> None:
        """Close all connections."""
        for each in self.direct:
            each.close()


def connect_teachers(settings: TeacherSettings) -> Teachers:
    """All that the settings describe, not yet connected to anything.

    BadInput where a key is missing or would go where it was not meant to, a URL is none, or an extra is not installed.
    """
    require_choosing(settings)
    direct = connect(settings)
    usual = translating(direct, settings)
    named = {name: _named(name, one, settings) for name, one in settings.named.items()}
    return Teachers(usual, named, (direct, *named.values()))


def _named(name: str, one: NamedTeacherSettings, settings: TeacherSettings) -> Teacher | Failover:
    own = dataclasses.replace(settings, url=one.url, key_env=one.key_env)
    teacher = Teacher(own, f"teacher.named.{name}", client_keys=False)
    if not settings.retries:
        return teacher
    return Failover([Deployment(f"{name} {host_names([one.url])[0]}", teacher, Breaker())], settings.retries)
