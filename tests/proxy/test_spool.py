import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import spool
from proxy.ids import ulid
from proxy.spool import Room, SpoolFull, SpoolWriter, adopt, closed_segments, open_segments
from tests.servers import eventually

WRITER = """
import os, sys
from pathlib import Path
from proxy.spool import SpoolWriter
writer = SpoolWriter(Path(sys.argv[1]), 1 << 30, 3600)
for number in range(1000):
    writer.append(b'{"n": %d}\\n' % number)
    os.write(1, b"%d\\n" % number)
"""


def lines(folder: Path) -> list[bytes]:
    return [line for segment in closed_segments(folder) for line in segment.read_bytes().split(b"\n") if line]


def adopted(folder: Path) -> list[Path]:
    return [closed for path in open_segments(folder) if (closed := adopt(path))]


def filled(writer: SpoolWriter) -> tuple[int, OSError]:
    """Write kilobytes until one is refused: how many fitted, and why no more."""
    for number in range(2000):
        try:
            writer.append(b"x" * 999 + b"\n")
        except OSError as error:
            return number, error
    raise AssertionError("the disk is not small")


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A filesystem of its own; skips where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"a small filesystem cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """RLIMIT_FSIZE stands in for a full disk: the kernel cuts the write short or refuses it."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)


@given(sizes=st.lists(st.integers(1, 400), max_size=40), limit=st.integers(1, 1000))
def test_every_line_is_in_exactly_one_segment(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    writer = SpoolWriter(folder, limit, 3600)
    written = [b"%d:" % number + b"x" * size for number, size in enumerate(sizes)]
    for line in written:
        writer.append(line + b"\n")
    writer.rotate()
    assert sorted(lines(folder)) == sorted(written)
    assert not list(folder.glob("*.open"))


def test_nothing_is_closed_while_young_and_old_ones_are(tmp_path: Path) -> None:
    young, old = SpoolWriter(tmp_path / "young", 1 << 20, 3600), SpoolWriter(tmp_path / "old", 1 << 20, 0)
    for writer in (young, old):
        writer.append(b"{}\n")
        writer.rotate_if_old()
    assert closed_segments(tmp_path / "young") == []
    assert len(closed_segments(tmp_path / "old")) == 1


def test_a_living_writers_segment_is_not_adopted(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 20, 3600)
    writer.append(b"{}\n")
    assert adopted(tmp_path) == []
    writer.append(b"{}\n")
    writer.rotate()
    assert lines(tmp_path) == [b"{}", b"{}"]


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(50)]
        process.send_signal(signal.SIGKILL)
    assert len(adopted(tmp_path)) == 1
    assert len(lines(tmp_path)) >= len(acknowledged) == 50


def test_a_segment_adopted_before_its_writer_locked_it_gets_no_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, raced = fcntl.flock, []

    def late(fd: int, operation: int) -> None:
        if not raced and operation == fcntl.LOCK_EX:
            raced.append(fd)
            assert len(adopted(tmp_path)) == 1
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    writer = SpoolWriter(tmp_path, 1 << 20, 3600)
    writer.append(b"{}\n")
    assert lines(tmp_path) == []
    writer.rotate()
    assert lines(tmp_path) == [b"{}"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = ["notes.ndjson", f"{ulid()}.ndjson.gz", f"copy-{ulid()}.open", "01A.open"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine\n")
    (tmp_path / f"{ulid()}.ndjson").mkdir()
    assert adopted(tmp_path) == closed_segments(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == set(names)


def test_a_full_disk_refuses_the_line_and_keeps_the_others(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30, 3600)
    writer.append(b"a" * 99 + b"\n")
    with file_size_limit(150):
        with pytest.raises(OSError, match=r".") as raised:
            writer.append(b"b" * 99 + b"\n")
        assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
        writer.append(b"c" * 9 + b"\n")
    writer.rotate()
    assert lines(tmp_path) == [b"a" * 99, b"c" * 9]


def test_a_failure_is_said_once_and_its_end_with_the_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = SpoolWriter(tmp_path, 1 << 30, 3600)
    with file_size_limit(50):
        for _ in range(5):
            with pytest.raises(OSError, match=r"."):
                writer.append(b"b" * 99 + b"\n")
    for _ in range(3):
        writer.append(b"b" * 99 + b"\n")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 2
    assert "traffic goes on" in said[0]
    assert said[1] == "exchanges are recorded again; 5 were not"


def test_a_segment_that_cannot_be_cut_back_is_left_for_adoption(tmp_path: Path) -> None:
    """What a disk does that turned read-only in the middle of a line."""
    writer = SpoolWriter(tmp_path, 1 << 30, 3600)
    writer.append(b"whole\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda fd, size: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
        with file_size_limit(10), pytest.raises(OSError, match="bytes fitted"):
            writer.append(b"torn in two\n")
    writer.append(b"next\n")
    writer.rotate()
    assert len(adopted(tmp_path)) == 1
    assert sorted(lines(tmp_path)) == [b"next", b"torn", b"whole"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_segment_that_cannot_be_closed_fails_no_exchange_and_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def failing(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    writer = SpoolWriter(tmp_path, 1, 3600)
    monkeypatch.setattr(os, "fsync", failing)
    writer.append(b"first\n")
    monkeypatch.undo()
    assert "could not be closed" in caplog.text
    writer.append(b"second\n")
    assert lines(tmp_path) == [b"second"]
    assert len(adopted(tmp_path)) == 1
    assert sorted(lines(tmp_path)) == [b"first", b"second"]


def test_a_folder_deleted_at_run_time_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spool"
    writer = SpoolWriter(folder, 1 << 30, 3600)
    writer.append(b"before\n")
    shutil.rmtree(folder)
    writer.append(b"not noticed yet\n")
    monkeypatch.setattr(spool, "LOOK_SECONDS", 0.0)
    writer.append(b"after\n")
    assert sorted(lines(folder)) == [b"before", b"not noticed yet"]
    writer.rotate()
    assert sorted(lines(folder)) == [b"after", b"before", b"not noticed yet"]
    assert "was deleted; its lines are now in" in caplog.text


def test_a_folder_that_cannot_be_is_refused_line_by_line_and_used_once_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.write_text("in the way")
    writer = SpoolWriter(folder, 1 << 30, 3600)
    for _ in range(2):
        with pytest.raises(OSError, match=r"."):
            writer.append(b"lost\n")
    folder.unlink()
    writer.append(b"kept\n")
    writer.rotate()
    assert lines(folder) == [b"kept"]


def test_below_the_mark_nothing_is_written_and_above_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space is what `statvfs` says; the test on a real small disk is below."""
    free = [1000]
    looks: list[int] = []

    def statvfs(path: Path) -> os.statvfs_result:
        looks.append(free[0])
        return os.statvfs_result((1, 1, 10_000, free[0], free[0], 1, 1, 1, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(spool, "LOOK_SECONDS", 0.0)
    writer = SpoolWriter(tmp_path, 1 << 30, 3600, min_free=800)
    writer.append(b"one\n")
    free[0] = 799
    with pytest.raises(SpoolFull, match=r"spool\.min_free_mb"):
        writer.append(b"two\n")
    free[0] = 899  # An eighth more than the mark, or it would flap.
    with pytest.raises(SpoolFull):
        writer.append(b"three\n")
    free[0] = 900
    writer.append(b"four\n")
    writer.rotate()
    assert lines(tmp_path) == [b"one", b"four"]
    monkeypatch.setattr(spool, "LOOK_SECONDS", 3600.0)
    quiet, before = SpoolWriter(tmp_path, 1 << 30, 3600, min_free=800), len(looks)
    for _ in range(100):
        quiet.append(b"many\n")
    assert len(looks) == before + 1


def test_a_disk_smaller_than_the_mark_keeps_a_tenth(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    assert Room(tmp_path / "not" / "yet", size * 2).short() == (free < size // 10)
    assert not Room(tmp_path, 0).short()


def test_a_real_small_disk_is_never_filled_by_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LOOK_SECONDS", 0.0)
    with small_disk(tmp_path / "disk") as disk:
        writer = SpoolWriter(disk / "spool", 1 << 30, 3600, min_free=512 << 20)
        assert isinstance(filled(writer)[1], SpoolFull)
        found = os.statvfs(disk)
        assert 0.08 < found.f_bavail / found.f_blocks < 0.1
        (disk / "other").write_bytes(b"y" * found.f_bavail * found.f_frsize)
        with pytest.raises(SpoolFull):
            writer.append(b"lost\n")
        (segment,) = open_segments(disk / "spool")
        whole = segment.read_bytes()
        writer.rotate()
        (disk / "other").unlink()
        closed_segments(disk / "spool")[0].unlink()
        eventually(lambda: _appends(writer, b"back\n"))
        writer.rotate()
        assert lines(disk / "spool") == [b"back"]
    assert set(whole.split(b"\n")) == {b"x" * 999, b""}


def test_a_real_full_disk_refuses_and_comes_back(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        writer = SpoolWriter(disk / "spool", 1 << 30, 3600)
        taken, error = filled(writer)
        assert error.errno == errno.ENOSPC
        writer.rotate()
        assert lines(disk / "spool") == [b"x" * 999] * taken


def test_a_disk_that_turns_read_only_refuses_and_comes_back(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        writer = SpoolWriter(disk, 1, 3600)
        writer.append(b"before\n")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError, match=r".") as raised:
            writer.append(b"lost\n")
        assert raised.value.errno == errno.EROFS
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        writer.append(b"after\n")
        assert lines(disk) == [b"before", b"after"]


def test_segments_are_private(tmp_path: Path) -> None:
    SpoolWriter(tmp_path, 1, 3600).append(b"{}\n")
    (segment,) = closed_segments(tmp_path)
    assert segment.stat().st_mode & 0o077 == 0


def _appends(writer: SpoolWriter, line: bytes) -> bool:
    try:
        writer.append(line)
    except SpoolFull:
        return False
    return True
