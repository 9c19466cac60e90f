"""Owns whose answers a student learns from, and whether their terms of use were acknowledged. Gives no legal advice.

A provider is told by the model that answered where its name says so, else by the host that was asked. Servers on this
machine or in a private network are nobody else's. Must not know students.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from distiller.curate import Recorded
from proxy.errors import Refused
from proxy.settings import TeacherSettings

SAID: Mapping[str, str] = MappingProxyType(
    {"openai": "whose terms do not allow its output to be used to develop models that compete with OpenAI"}
)
_OTHERS = "whose terms may limit what its output is used for"
_FAMILIES = (
    (re.compile(r"gpt-\d|chatgpt-|o\d|(?:text-)?davinci"), "openai"),
    (re.compile(r"claude"), "anthropic"),
    (re.compile(r"gemini"), "google"),
)


@dataclass(frozen=True, slots=True)
class Terms:
    """One provider, how many of the rows are its answers, and whether its terms were acknowledged."""

    provider: str
    rows: int
    acknowledged: bool


def terms_of(rows: Iterable[Recorded], teacher: TeacherSettings, acknowledged: Sequence[str]) -> tuple[Terms, ...]:
    """Of every provider whose terms need it, by name."""
    counted = Counter(name for row in rows for name in providers(row, teacher))
    return tuple(Terms(name, count, name in acknowledged) for name, count in sorted(counted.items()))


def providers(row: Recorded, teacher: TeacherSettings) -> tuple[str, ...]:
    """Whose terms are about this row: none where it is nobody else's; all hosts it may have come from where unknown.

    Of a named teacher that is not declared any more the host is not known: its name then stands for the provider.
    """
    asked = str(row.request.get("model") or "")
    if row.teacher is None and any(asked.startswith(prefix) for prefix in teacher.translate):
        return (asked.partition("/")[0],)
    name = (row.model or asked).lower().removeprefix("ft:").rpartition("/")[2]
    for family, provider in _FAMILIES:
        if family.match(name):
            return (provider,)
    if row.teacher is not None and row.teacher not in teacher.named:
        return (row.teacher,)
    urls = (
        [teacher.url, *(each.url for each in teacher.deployments)]
        if row.teacher is None
        else [teacher.named[row.teacher].url]
    )
    hosts = [urlsplit(url).hostname or "" for url in urls]
    return tuple(dict.fromkeys(_provider(host) for host in hosts if not _own(host)))


def check(terms: Sequence[Terms], policy: str, of_providers: Mapping[str, str], task: str) -> None:
    """Refused, with what to do, where the policy is "refuse" and something was not acknowledged.

    `of_providers` has the policy of those for whom it is another one.
    """
    missing = [one for one in terms if not one.acknowledged and of_providers.get(one.provider, policy) == "refuse"]
    if missing:
        raise Refused(f"task {task!r} is not distilled: {'; '.join(map(in_words, missing))}")


def in_words(one: Terms) -> str:
    """What is not acknowledged and how to do it."""
    return (
        f"{one.rows} rows are answers of {one.provider}, {SAID.get(one.provider, _OTHERS)}: not acknowledged. Read "
        f'them, and where what you do is allowed add "{one.provider}" to distiller.teacher_terms_ack'
    )


def _provider(host: str) -> str:
    return "openai" if host == "openai.com" or host.endswith(".openai.com") else host


def _own(host: str) -> bool:
    """Whether it is a server of this machine or of a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
