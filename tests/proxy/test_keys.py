import json
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.keys import PREFIX, create_key, load_key_ring, read_keys, revoke_key
from proxy.limits import NO_LIMITS, Limits


def found(file: Path, given: str | None) -> bool:
    """Whether a client with this Authorization header has a good key."""
    headers = [] if given is None else [(b"authorization", given.encode("utf-8", "surrogatepass"))]
    return load_key_ring(file).find(headers) is not None


def test_a_key_admits_until_it_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "state" / "keys.json"
    secret = create_key(file, "billing-bot", ())
    assert secret.startswith(PREFIX)
    assert found(file, f"Bearer {secret}")
    revoke_key(file, "billing-bot")
    assert not found(file, f"Bearer {secret}")
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
    with tempfile.TemporaryDirectory() as folder:
        create_key(Path(folder) / "keys.json", "a", ())
        assert not found(Path(folder) / "keys.json", authorization)


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda key: key[:-1], lambda key: key + "x", lambda key: ""])
def test_nearly_a_key_is_no_key(change: "type[str]", tmp_path: Path) -> None:
    secret = create_key(tmp_path / "keys.json", "a", ())
    assert not found(tmp_path / "keys.json", f"Bearer {change(secret)}")


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
    assert not found(file, "Bearer x")
    with pytest.raises(BadInput, match="is damaged"):
        create_key(file, "a", ())
    assert file.read_text() == content


def test_a_key_is_found_however_a_client_sends_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = create_key(file, "a", ()).encode()
    ring = load_key_ring(file)
    for headers in (
        [(b"Authorization", b"Bearer " + secret)],
        [(b"x-api-key", secret)],
        [(b"api-key", secret)],
        [(b"authorization", b"Bearer sk-other"), (b"x-api-key", secret)],
    ):
        found = ring.find(headers)
        assert found is not None
        assert found.name == "a"
    for headers in ([], [(b"authorization", b"Bearer " + secret + b"x")], [(b"cookie", secret)]):
        assert ring.find(headers) is None
    revoke_key(file, "a")
    assert load_key_ring(file).find([(b"x-api-key", secret)]) is None


def test_limits_are_kept_and_older_files_have_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    create_key(file, "a", ("m",), Limits(60, 1000, 5.0), capture=False)
    (key,) = read_keys(file)
    assert (key.limits, key.capture, key.models) == (Limits(60, 1000, 5.0), False, ("m",))
    fields = json.loads(file.read_text())
    del fields["keys"][0]["limits"], fields["keys"][0]["capture"]
    file.write_text(json.dumps(fields))
    (old,) = read_keys(file)
    assert (old.limits, old.capture) == (NO_LIMITS, True)


@pytest.mark.parametrize(
    "wrong", [{"capture": "false"}, {"limits": {"budget_usd": "5"}}, {"limits": {"budget": 5}}, {"limits": 5}]
)
def test_a_limit_that_cannot_be_read_is_not_no_limit(wrong: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = create_key(file, "a", ())
    fields = json.loads(file.read_text())
    fields["keys"][0] |= wrong
    file.write_text(json.dumps(fields))
    assert load_key_ring(file).find([(b"x-api-key", secret.encode())]) is None
    with pytest.raises(BadInput):
        read_keys(file)
