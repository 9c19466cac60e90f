import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from distiller.bundle import Bundle, amend, load_bundle, seal
from distiller.settings import SigningSettings
from distiller.signature import sign, verify
from proxy.errors import BadInput, Refused


def written(folder: Path, name: str = "key") -> SigningSettings:
    """A fresh pair of keys in two files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return SigningSettings(key=str(private), public_key=str(public))


@pytest.fixture
def keys(tmp_path: Path) -> SigningSettings:
    return written(tmp_path)


def student(folder: Path, weights: str = "weights") -> Bundle:
    (folder / "work").mkdir()
    (folder / "work" / "weights").write_text(weights)
    (folder / "work" / "holdout.jsonl").write_text("one\ntwo\n")
    return seal(folder / "work", folder / "students", {"task": "mail"})


def test_a_signed_student_is_known_by_us_and_by_openssl(tmp_path: Path, keys: SigningSettings) -> None:
    bundle = student(tmp_path)
    with pytest.raises(Refused, match=f"{bundle.id} is not signed: distill it with signing.key set"):
        verify(bundle.path, keys)
    sign(bundle.path, keys)
    verify(bundle.path, keys)
    assert load_bundle(bundle.path) == bundle
    command = [
        "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys.public_key, "-rawin", "-in", "SHA256SUMS",
        "-sigfile", "SHA256SUMS.sig",
    ]  # fmt: skip
    assert subprocess.run(command, cwd=bundle.path, capture_output=True).returncode == 0


def test_without_keys_nothing_is_signed_and_nothing_is_asked_for(tmp_path: Path) -> None:
    bundle = student(tmp_path)
    sign(bundle.path, SigningSettings())
    assert not (bundle.path / "SHA256SUMS.sig").exists()
    verify(bundle.path, SigningSettings())


def test_the_key_may_be_in_the_environment(
    tmp_path: Path, keys: SigningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNING_KEY", Path(keys.key).read_text())
    bundle = student(tmp_path)
    sign(bundle.path, replace(keys, key="", key_env="SIGNING_KEY"))
    verify(bundle.path, keys)


def test_what_was_changed_or_signed_by_another_is_refused(tmp_path: Path, keys: SigningSettings) -> None:
    bundle, other = student(tmp_path), student(tmp_path, "others")
    sign(bundle.path, written(tmp_path, "foreign"))
    with pytest.raises(Refused, match=r"is not by the key in signing.public_key"):
        verify(bundle.path, keys)
    for one in (bundle, other):
        sign(one.path, keys)
    (bundle.path / "SHA256SUMS.sig").write_bytes((other.path / "SHA256SUMS.sig").read_bytes())
    with pytest.raises(Refused, match="or of other files"):
        verify(bundle.path, keys)
    (other.path / "weights").write_text("worse")
    with pytest.raises(BadInput, match="weights was changed"):
        verify(other.path, keys)


def test_a_student_that_is_not_in_its_own_folder_is_refused(tmp_path: Path, keys: SigningSettings) -> None:
    bundle = student(tmp_path)
    sign(bundle.path, keys)
    moved = bundle.path.rename(tmp_path / "students" / "student-0")
    with pytest.raises(Refused, match=f"student-0 holds {bundle.id}"):
        verify(moved, keys)


def test_erasing_rows_of_the_holdout_keeps_a_signature_and_nothing_else_may_be_replaced(
    tmp_path: Path, keys: SigningSettings
) -> None:
    bundle = student(tmp_path)
    sign(bundle.path, keys)
    amend(bundle.path, "holdout.jsonl", b"two\n", bundle.manifest)
    verify(bundle.path, keys)
    amend(bundle.path, "weights", b"worse", bundle.manifest)
    with pytest.raises(Refused, match=r"weights of student-.* was replaced after it was signed"):
        verify(bundle.path, keys)


def test_what_is_no_key_is_said(tmp_path: Path, keys: SigningSettings) -> None:
    bundle, other = student(tmp_path), tmp_path / "ec.pem"
    key = generate_private_key(SECP256R1())
    other.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for bad in (
        SigningSettings(key=str(other)), SigningSettings(key=keys.public_key),
        SigningSettings(key=str(tmp_path / "none")), SigningSettings(key_env="NOT_SET"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match="holds no Ed25519 private key in PEM"):
            sign(bundle.path, bad)
    for path in (keys.key, str(tmp_path / "none"), str(other)):
        with pytest.raises(BadInput, match="holds no Ed25519 public key in PEM"):
            verify(bundle.path, SigningSettings(public_key=path))
