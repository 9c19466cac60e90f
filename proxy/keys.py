"""Owns virtual keys: who may use the proxy in front of a teacher's key, for which models and within which limits.

Must not know what a request costs, nor what was spent. A key is shown once, when it is made; what is kept is its
SHA-256, which is enough for 256 random bits. Whoever can read the file can impersonate nobody.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxy.admitting import credentials
from proxy.errors import BadInput
from proxy.files import put
from proxy.headers import Headers
from proxy.limits import NO_LIMITS, Limits

PREFIX = "sk-still-"
_log = logging.getLogger("stillroom.keys")


@dataclass(frozen=True, slots=True)
class Key:
    """One virtual key; empty `models` allows all. `revoked` is the time, or None while it is good."""

    name: str
    sha256: str
    created: str
    models: tuple[str, ...] = ()
    revoked: str | None = None
    limits: Limits = NO_LIMITS
    capture: bool = True


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys by the SHA-256 of their secrets."""

    by_hash: Mapping[str, Key] = field(default_factory=dict)

    def find(self, headers: Headers) -> Key | None:
        """The good key that a request carries, or None."""
        found = (self.by_hash.get(hashlib.sha256(given).hexdigest()) for given in credentials(headers))
        return next((key for key in found if key is not None and not key.revoked), None)


def create_key(path: Path, name: str, models: tuple[str, ...], limits: Limits = NO_LIMITS, capture: bool = True) -> str:
    """Make a key and return it, for the only time; BadInput where a good key has the name already.

    Without `capture` nothing of what it is used for is kept.
    """
    if not name.isprintable() or not name.strip():
        raise BadInput("a key's name must be printable and not empty: call it after who uses it")
    secret = PREFIX + secrets.token_urlsafe(32)
    with _changing(path) as keys:
        if any(key.name == name and not key.revoked for key in keys):
            raise BadInput(f"there is a key {name!r} already: revoke it first, or take another name")
        keys.append(Key(name, _hash(secret), _now(), models, limits=limits, capture=capture))
    return secret


def revoke_key(path: Path, name: str) -> Key:
    """Make a key good for nothing, within a second on every worker; BadInput where there is none."""
    with _changing(path) as keys:
        for place, key in enumerate(keys):
            if key.name == name and not key.revoked:
                keys[place] = replace(key, revoked=_now())
                return keys[place]
    raise BadInput(f"there is no key {name!r} to revoke: `stillroom keys list` shows them")


def read_keys(path: Path) -> list[Key]:
    """All keys ever made, oldest first; BadInput where the file is damaged."""
    if not path.exists():
        return []
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))["keys"]
        return [_key(each) for each in fields]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is damaged ({error}): put back a copy, or delete it and make the keys anew") from None


def load_key_ring(path: Path) -> KeyRing:
    """For the workers: where the file cannot be read, nobody is admitted."""
    try:
        return KeyRing({key.sha256: key for key in read_keys(path)})
    except (BadInput, OSError) as error:
        _log.error("no key is accepted: %s", error)
        return KeyRing()


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys, written back whole when the block ends well; one writer at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read_keys(path)
        yield keys
        put(path, json.dumps({"keys": [dataclasses.asdict(key) for key in keys]}, indent=1))


def _key(fields: Mapping[str, Any]) -> Key:
    """One entry of the file; what older files do not say is without limit. A limit that is none is BadInput."""
    if type(fields.get("capture", True)) is not bool:
        raise TypeError("capture must be true or false")
    limits = Limits(**fields.get("limits", {}))
    return Key(**{**fields, "models": tuple(fields["models"]), "limits": limits})


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
