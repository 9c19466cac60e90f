import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.admitting import Admitted
from proxy.errors import BadInput
from proxy.tenants import passing_through, tenant_salt

KEY = b"sk-proj-a-key-of-the-client"
MAKER = "import sys; from pathlib import Path; from proxy.tenants import tenant_salt; sys.stdin.read(1); "
MAKER += "print(tenant_salt(Path(sys.argv[1])).hex())"


def tenant(salt: bytes, *headers: tuple[bytes, bytes]) -> str | None:
    admitted = passing_through(salt)("/v1/models", headers, b"")
    assert isinstance(admitted, Admitted)
    assert admitted.capture
    assert admitted.settle is None
    return admitted.tenant


def test_a_tenant_is_named_by_a_hash_of_its_key() -> None:
    salt = b"s" * 32
    name = tenant(salt, (b"authorization", b"Bearer " + KEY))
    assert name is not None
    assert name == tenant(salt, (b"x-api-key", KEY))
    assert len(name) == 16
    assert name != tenant(b"t" * 32, (b"x-api-key", KEY))
    assert name != tenant(salt, (b"x-api-key", KEY + b"x"))
    assert tenant(salt) is None


def test_the_salt_is_the_operators_own_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "home" / "tenant.salt"
    assert len(tenant_salt(file)) == 32
    assert tenant_salt(file) == tenant_salt(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["tenant.salt"]


def test_processes_that_start_together_agree_on_one_salt(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(tmp_path / "tenant.salt")]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write(b"\n")
        maker.stdin.flush()
    assert len({maker.communicate()[0] for maker in makers}) == 1
    assert len({tenant_salt(tmp_path / "tenant.salt").hex()}) == 1


def test_a_damaged_salt_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "tenant.salt").write_bytes(b"short")
    with pytest.raises(BadInput, match="is damaged"):
        tenant_salt(tmp_path / "tenant.salt")
