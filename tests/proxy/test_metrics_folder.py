import logging
import stat
from pathlib import Path

import pytest

from proxy.metrics_folder import metrics_folder


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def test_workers_count_in_memory_and_others_find_it_under_home(tmp_path: Path, memory: Path) -> None:
    home = tmp_path / "home" / "state" / "metrics"
    with metrics_folder(home, memory) as folder:
        assert folder.parent == memory
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "counter_1.db").write_bytes(b"1")
        assert (home / "counter_1.db").read_bytes() == b"1"
    assert not home.is_symlink()
    assert list(memory.iterdir()) == []


def test_what_a_killed_one_left_is_removed_and_nothing_else(tmp_path: Path, memory: Path) -> None:
    home, other = tmp_path / "metrics", memory / "stillroom-of-another-home"
    other.mkdir()
    killed = metrics_folder(home, memory)
    left = killed.__enter__()  # Who is killed never leaves.
    (left / "counter_1.db").write_bytes(b"1")
    with metrics_folder(home, memory) as folder:
        assert not left.exists()
        assert list(folder.iterdir()) == []
        assert other.exists()


def test_a_link_that_leads_elsewhere_loses_only_itself(tmp_path: Path, memory: Path) -> None:
    home, precious = tmp_path / "metrics", tmp_path / "stillroom-precious"
    precious.mkdir()
    home.symlink_to(precious)
    with metrics_folder(home, memory) as folder:
        assert folder.parent == memory
    assert precious.exists()


def test_without_such_memory_it_is_under_home_and_empty(tmp_path: Path) -> None:
    home = tmp_path / "state" / "metrics"
    home.mkdir(parents=True)
    (home / "counter_1.db").write_bytes(b"1")
    with metrics_folder(home, tmp_path / "none") as folder:
        assert folder == home
        assert list(folder.iterdir()) == []
    assert not home.exists()


def test_a_home_that_takes_nothing_is_said_and_stops_nobody(
    tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with caplog.at_level(logging.ERROR), metrics_folder(tmp_path / "state" / "metrics", memory) as folder:
        (folder / "counter_1.db").write_bytes(b"1")
    assert "/metrics lacks what workers count" in caplog.text
