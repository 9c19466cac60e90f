import stat
import threading
from pathlib import Path

import pytest

from proxy.files import put, put_once
from tests.proxy.test_spool import file_size_limit


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_content_is_there_with_its_mode_and_nothing_beside(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "new" / "file.json"
    put(path, "ü", mode)
    put(path, b"second", mode)
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(path.parent.iterdir()) == [path]


def test_who_reads_meanwhile_finds_one_or_the_other_whole(tmp_path: Path) -> None:
    path, done = tmp_path / "file", threading.Event()
    contents = {b"a" * 100_000, b"b" * 200_000}
    put(path, b"a" * 100_000)

    def write() -> None:
        for _ in range(50):
            for content in contents:
                put(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    writer.join()


def test_what_does_not_fit_leaves_the_old_content_and_no_scraps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    put(path, b"old")
    with file_size_limit(1000), pytest.raises(OSError, match=r"File too large|No space"):
        put(path, b"x" * 2000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_secrets_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    together = [threading.Thread(target=put_once, args=(path, bytes([number]) * 32)) for number in range(8)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    first = path.read_bytes()
    assert first in {bytes([number]) * 32 for number in range(8)}
    put_once(path, b"late")
    assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
