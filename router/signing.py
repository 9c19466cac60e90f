"""Owns the operator's signature: an Ed25519 key on this disk, and what it signs as JSON.

Must not know what a document says. The private key is read and written here only; it is never shown or logged.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from proxy.errors import BadInput
from proxy.files import put_once

FINE, BROKEN, FOREIGN, UNSIGNED = "fine", "broken", "another key", "not signed"


def signed(document: Mapping[str, Any], key_file: Path) -> dict[str, Any]:
    """The document with its `signature`: algorithm, public key and value, the last two in hex.

    Signed are the canonical bytes of the document with its signature, but for the value: see `canonical`. An older
    signature is replaced. Makes the key at the first use.
    """
    key = operator_key(key_file)
    unfinished = {**document, "signature": {"algorithm": "Ed25519", "public_key": public_key(key)}}
    value = key.sign(canonical(unfinished)).hex()
    return {**unfinished, "signature": {**unfinished["signature"], "value": value}}


def examine(document: Mapping[str, Any], key_file: Path) -> str:
    """FINE, BROKEN (changed after signing), FOREIGN (sound, by a key that is not the one here) or UNSIGNED."""
    if "signature" not in document:
        return UNSIGNED
    signature = document["signature"]
    if not isinstance(signature, dict) or set(signature) != {"algorithm", "public_key", "value"}:
        return BROKEN
    covered = {**document, "signature": {name: signature[name] for name in ("algorithm", "public_key")}}
    try:
        public, value = bytes.fromhex(signature["public_key"]), bytes.fromhex(signature["value"])
        if signature["algorithm"] != "Ed25519" or value.hex() != signature["value"]:  # Hex has more than one spelling.
            return BROKEN
        Ed25519PublicKey.from_public_bytes(public).verify(value, canonical(covered))
    except (TypeError, ValueError, InvalidSignature):
        return BROKEN
    ours = public_key(_read(key_file)) if key_file.exists() else None
    return FINE if signature["public_key"] == ours else FOREIGN


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, in UTF-8: the same value is the same bytes. ValueError for what is no JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")  # Half a character signs as well as a whole one.


def public_key(key: Ed25519PrivateKey) -> str:
    """In hex, as documents carry it."""
    return key.public_key().public_bytes_raw().hex()


def operator_key(path: Path) -> Ed25519PrivateKey:
    """The key in this file, made by whoever comes first; BadInput where the file is damaged."""
    if path.exists():
        return _read(path)
    put_once(path, Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return _read(path)


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(
            f"{path} holds no Ed25519 key: put back a copy, or delete it; older certificates are then foreign"
        )
    return key
