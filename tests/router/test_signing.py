import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from router.signing import BROKEN, FINE, FOREIGN, UNSIGNED, canonical, examine, operator_key, public_key, signed

DOCUMENT = {"task": "triage", "parity": {"n": 3, "mean": 1.0}, "note": "\u00fcber \ud800"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_what_is_signed_is_fine_and_only_the_key_here_signs_it(tmp_path: Path) -> None:
    document = signed(DOCUMENT, tmp_path / "key")
    assert examine(document, tmp_path / "key") == FINE
    assert examine(document, tmp_path / "missing") == FOREIGN
    operator_key(tmp_path / "other")
    assert examine(document, tmp_path / "other") == FOREIGN
    assert examine(DOCUMENT, tmp_path / "key") == UNSIGNED
    assert not (tmp_path / "missing").exists()


def test_anybody_can_check_it_with_the_canonical_bytes(tmp_path: Path) -> None:
    document = signed({"b": 1, "a": ["\u00fc"]}, tmp_path / "key")
    public, value = document["signature"]["public_key"], document["signature"]["value"]
    said = f'{{"a":["\u00fc"],"b":1,"signature":{{"algorithm":"Ed25519","public_key":"{public}"}}}}'
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(value), said.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"more": 1},
        {"parity": {"n": 3, "mean": 1}},
        {"signature": None},
        {"signature": {}},
        {"signature": {"algorithm": "Ed25519", "public_key": "zz", "value": 3}},
        {"signature": {"algorithm": "Ed25519", "public_key": "00", "value": "00"}},
    ],
)
def test_what_was_changed_is_broken(tmp_path: Path, change: dict[str, Any]) -> None:
    assert examine({**signed(DOCUMENT, tmp_path / "key"), **change}, tmp_path / "key") == BROKEN


@pytest.mark.parametrize("part", ["algorithm", "public_key", "value"])
def test_a_signature_has_one_spelling(tmp_path: Path, part: str) -> None:
    document = signed(DOCUMENT, tmp_path / "key")
    document["signature"][part] = document["signature"][part].upper()
    assert examine(document, tmp_path / "key") == BROKEN


def test_signing_again_replaces_the_signature(tmp_path: Path) -> None:
    once = signed(DOCUMENT, tmp_path / "key")
    assert signed(once, tmp_path / "key") == once


@given(JSON, JSON)
def test_equal_values_are_equal_bytes_and_others_are_not(one: Any, other: Any) -> None:
    assert canonical(json.loads(json.dumps(one))) == canonical(one)
    assert (canonical(one) == canonical(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


def test_the_key_is_private_whatever_the_umask_and_made_once_by_two_processes(tmp_path: Path) -> None:
    file = tmp_path / "home" / "certificate.key"
    program = (
        "import os, pathlib, sys; os.umask(0); from router.signing import operator_key, public_key\n"
        "print(flush=True); sys.stdin.readline(); print(public_key(operator_key(pathlib.Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", program, str(file)]
    root = Path(__file__).parents[2]
    racers = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout
        racer.stdout.readline()
    said = {racer.communicate("go\n")[0].strip() for racer in racers}
    assert said == {public_key(operator_key(file))}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_said_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="holds no Ed25519 key"):
        signed(DOCUMENT, file)
    assert file.read_bytes() == content


def test_who_comes_second_takes_the_key_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, first, sync = tmp_path / "key", [], os.fsync

    def overtaken(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        first.append(public_key(operator_key(file)))  # While ours is written, another process has made its own.
        sync(fd)

    monkeypatch.setattr(os, "fsync", overtaken)
    assert [public_key(operator_key(file))] == first == [public_key(operator_key(file))]
    assert [one.name for one in tmp_path.iterdir()] == ["key"]
