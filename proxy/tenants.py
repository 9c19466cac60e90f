"""Owns the names of tenants who bring their own keys: a salted hash of the key, the same on all workers.

Must not keep a key, not even in memory: hashing (BLAKE2b with a key, RFC 7693) takes 1 us, and a cache would save it by
holding secrets. The salt never leaves the home folder, so that a name seen in the log cannot be tested against a list
of known keys.
"""

import contextlib
import hashlib
import secrets
from pathlib import Path

from proxy.admitting import Admit, Admitted, credentials
from proxy.errors import BadInput
from proxy.files import put_once
from proxy.headers import Headers

_SALT_BYTES = 32
_NAME_BYTES = 8


def passing_through(salt: bytes) -> Admit:
    """Admits everybody, under the name of the key that was sent along."""

    def admit(path: str, headers: Headers, body: bytes) -> Admitted:
        key = next(credentials(headers), None)
        name = None if key is None else hashlib.blake2b(key, key=salt, digest_size=_NAME_BYTES).hexdigest()
        return Admitted(name)

    return admit


def tenant_salt(path: Path) -> bytes:
    """The salt of this home, made by whoever comes first; BadInput where the file is damaged."""
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    put_once(path, secrets.token_bytes(_SALT_BYTES))
    return _read(path)


def _read(path: Path) -> bytes:
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise BadInput(f"{path} is damaged: put back a copy, or delete it; tenants then get new names")
    return salt
