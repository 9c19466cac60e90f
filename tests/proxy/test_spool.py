import errno
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.spool import SpoolWriter, adopt, closed_segments

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
    assert list(adopt(tmp_path)) == []
    writer.append(b"{}\n")
    writer.rotate()
    assert lines(tmp_path) == [b"{}", b"{}"]


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(50)]
        process.send_signal(signal.SIGKILL)
    assert len(list(adopt(tmp_path))) == 1
    assert len(lines(tmp_path)) >= len(acknowledged) == 50


def test_a_torn_last_line_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "01A.open").write_bytes(b'{"whole": 1}\n{"torn": ')
    assert [path.name for path in adopt(tmp_path)] == ["01A.ndjson"]
    assert lines(tmp_path) == [b'{"whole": 1}']
    assert (tmp_path / "01A.torn").read_bytes() == b'{"torn": '


def test_a_full_disk_refuses_the_line_and_keeps_the_others(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the kernel cuts the write short or refuses it."""
    writer = SpoolWriter(tmp_path, 1 << 30, 3600)
    writer.append(b"a" * 99 + b"\n")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, old[1]))
    try:
        with pytest.raises(OSError, match=r".") as raised:
            writer.append(b"b" * 99 + b"\n")
        assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
        writer.append(b"c" * 9 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)
    writer.rotate()
    assert lines(tmp_path) == [b"a" * 99, b"c" * 9]


def test_segments_are_private(tmp_path: Path) -> None:
    SpoolWriter(tmp_path, 1, 3600).append(b"{}\n")
    (segment,) = closed_segments(tmp_path)
    assert segment.stat().st_mode & 0o077 == 0
