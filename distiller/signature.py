"""Owns signatures of students: Ed25519 (RFC 8032) over SHA256SUMS as it was sealed, in SHA256SUMS.sig beside it.

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig

Files that were amended since are told by the manifest, which nobody signs: so only such may be as no engine reads.
Must not know what a student is for. Private keys are read here only, and never shown or logged.
"""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from distiller.bundle import SIGNATURE, load_bundle, sealed_sums
from distiller.settings import SigningSettings
from proxy.errors import BadInput, Refused
from proxy.files import put

AMENDABLE = frozenset({"holdout.jsonl"})
"""What erasing a user may cut out of a sealed student."""


def sign(student: Path, settings: SigningSettings) -> None:
    """Sign the student in a folder, where there is a key; BadInput where it cannot be read."""
    if not (settings.key or settings.key_env):
        return
    key = _private_key(settings)
    put(student / SIGNATURE, key.sign(sealed_sums(student)[0].encode()), 0o644)


def trust(settings: SigningSettings) -> Callable[[Path], None]:
    """What raises for a student's folder unless its files are as they were signed; without `public_key` nothing is.

    BadInput where the public key cannot be read, and, of a folder, where it is incomplete or changed; Refused where it
    was not signed with that key.
    """
    if not settings.public_key:
        return lambda student: None
    key = _public_key(Path(settings.public_key))
    return lambda student: _check(student, key)


def verify(student: Path, settings: SigningSettings) -> None:
    """The same for one student."""
    trust(settings)(student)


def _check(student: Path, key: Ed25519PublicKey) -> None:
    name, place = load_bundle(student).id, student / SIGNATURE
    if name != student.name:
        raise Refused(f"{student} holds {name}: put back the student it is named after")
    if not place.is_file():
        raise Refused(f"{name} is not signed: distill it with signing.key set, or clear signing.public_key")
    text, amended = sealed_sums(student)
    try:
        key.verify(place.read_bytes(), text.encode())
    except InvalidSignature:
        raise Refused(f"the signature of {name} is not by the key in signing.public_key, or of other files") from None
    if amended - AMENDABLE:
        raise Refused(f"{', '.join(sorted(amended - AMENDABLE))} of {name} was replaced after it was signed")


def _private_key(settings: SigningSettings) -> Ed25519PrivateKey:
    where = settings.key or f"the environment variable {settings.key_env}"
    try:
        pem = Path(settings.key).read_bytes() if settings.key else os.environ[settings.key_env].encode()
        key = load_pem_private_key(pem, None)
    except (OSError, KeyError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{where} holds no Ed25519 private key in PEM: see [signing] in deploy/stillroom.toml")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"signing.public_key {path} holds no Ed25519 public key in PEM")
    return key
