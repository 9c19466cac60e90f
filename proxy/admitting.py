"""Owns the seam between relaying and admission: who may ask, under which name, and what is done when it is over.

Must not know how that is found out. `Admit` is a callable, so that the relay is the same with virtual keys and without.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from proxy.exchange import Exchange
from proxy.headers import Headers

Settle = Callable[[Exchange], None]

# How OpenAI's, Anthropic's and Azure's clients send a key; of several the first is looked at first.
_CARRIERS = (b"authorization", b"x-api-key", b"api-key")


@dataclass(frozen=True, slots=True)
class Denied:
    """The whole refusal; `reason` is "key", "model", "requests", "tokens" or "budget", as the metric has it."""

    status: int
    body: bytes
    headers: Headers
    reason: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who asks, and whether it may be kept; `settle` is owed one call when the exchange is over, however it ended."""

    tenant: str | None = None
    capture: bool = True
    settle: Settle | None = None


# Given the path, the headers and the body; must return at once.
Admit = Callable[[str, Headers, bytes], Admitted | Denied]


def admit_everybody(path: str, headers: Headers, body: bytes) -> Admitted:
    """Whoever reaches the port may ask, and nobody has a name."""
    return Admitted()


def credentials(headers: Headers) -> Iterator[bytes]:
    """The keys a request carries, without their scheme."""
    for carrier in _CARRIERS:
        for name, value in headers:
            if (name == carrier or name.lower() == carrier) and (bare := _bare(value)):
                yield bare


def _bare(value: bytes) -> bytes:
    return (value[7:] if value[:7].lower() == b"bearer " else value).strip()
