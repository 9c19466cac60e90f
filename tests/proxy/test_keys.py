import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.keys import PREFIX, KeyRing, create_key, load_key_ring, nobody_refused, read_keys, revoke_key


def code(refusal: tuple[int, bytes] | None) -> tuple[int, str] | None:
    return None if refusal is None else (refusal[0], json.loads(refusal[1])["error"]["code"])


UNKNOWN = (401, "invalid_api_key")


def test_a_key_admits_until_it_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "state" / "keys.json"
    secret = create_key(file, "billing-bot", ())
    assert secret.startswith(PREFIX)
    assert load_key_ring(file).refusal(f"Bearer {secret}", b"{}") is None
    revoke_key(file, "billing-bot")
    assert code(load_key_ring(file).refusal(f"Bearer {secret}", b"{}")) == UNKNOWN
    again = create_key(file, "billing-bot", ())
    assert again != secret
    assert [bool(key.revoked) for key in read_keys(file)] == [True, False]


def test_the_secret_is_kept_nowhere_and_the_file_is_the_operators_own(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = create_key(file, "a", ())
    assert secret.removeprefix(PREFIX) not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@given(st.none() | st.text(max_size=80))
def test_whatever_is_no_key_is_refused(authorization: str | None) -> None:
    assert code(KeyRing().refusal(authorization, b"")) == UNKNOWN


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda key: key[:-1], lambda key: key + "x", lambda key: ""])
def test_nearly_a_key_is_no_key(change: "type[str]", tmp_path: Path) -> None:
    secret = create_key(tmp_path / "keys.json", "a", ())
    ring = load_key_ring(tmp_path / "keys.json")
    assert code(ring.refusal(f"Bearer {change(secret)}", b"")) == UNKNOWN
    assert code(ring.refusal(None, b"")) == UNKNOWN


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        (b'{"model":"gpt-4o-mini"}', True),
        (b'{"model":"gpt-4o"}', False),
        (b'{"model":"gpt-4o","model":"gpt-4o-mini"}', True),
        (b'{"model":["gpt-4o-mini"]}', False),
        (b"{}", False),
        (b"[]", False),
        (b"", False),
        (b"[" * 100_000, False),
    ],
)
def test_a_key_is_for_the_models_it_was_made_for(body: bytes, allowed: bool, tmp_path: Path) -> None:
    secret = create_key(tmp_path / "keys.json", "a", ("gpt-4o-mini", "o3"))
    refusal = load_key_ring(tmp_path / "keys.json").refusal(f"Bearer {secret}", body)
    assert code(refusal) == (None if allowed else (403, "model_not_allowed"))


def test_a_name_is_one_good_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    create_key(file, "a", ())
    with pytest.raises(BadInput, match="there is a key 'a' already"):
        create_key(file, "a", ())
    with pytest.raises(BadInput, match="printable and not empty"):
        create_key(file, " ", ())
    with pytest.raises(BadInput, match="no key 'b' to revoke"):
        revoke_key(file, "b")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"keys":[{"name":"a"}]}', '{"keys":[5]}'])
def test_a_damaged_file_admits_nobody_and_is_not_written_over(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    assert code(load_key_ring(file).refusal("Bearer x", b"")) == UNKNOWN
    with pytest.raises(BadInput, match="is damaged"):
        create_key(file, "a", ())
    assert file.read_text() == content


def test_without_keys_everybody_may_ask() -> None:
    assert nobody_refused(None, b"") is None  # type: ignore[func-returns-value]
