import pytest

from proxy.admitting import Admitted, admit_everybody, credentials


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], []),
        ([(b"Authorization", b"Bearer a")], [b"a"]),
        ([(b"authorization", b"bearer  a ")], [b"a"]),
        ([(b"X-Api-Key", b"a")], [b"a"]),
        ([(b"api-key", b"c"), (b"x-api-key", b"b"), (b"authorization", b"Bearer a")], [b"a", b"b", b"c"]),
        ([(b"authorization", b"Bearer "), (b"x-api-key", b"b")], [b"b"]),
        ([(b"x-other", b"a")], []),
    ],
)
def test_keys_are_found_where_clients_put_them(headers: list[tuple[bytes, bytes]], found: list[bytes]) -> None:
    assert list(credentials(headers)) == found


def test_everybody_is_kept_and_owes_nothing() -> None:
    assert admit_everybody("/v1/models", [], b"") == Admitted(tenant=None, capture=True, settle=None)
