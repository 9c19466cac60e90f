import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.backup import KEEP, back_up, backups, trouble
from proxy.errors import Unavailable
from proxy.log import Log, open_log
from proxy.settings import LogSettings


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = open_log(LogSettings(), tmp_path)
    log.query("CREATE TABLE numbers (number INTEGER)")
    return log


def numbers(catalog: Path, data: Path) -> list[int]:
    log = open_log(LogSettings(f"sqlite:{catalog}", str(data)), catalog.parent)
    found = [number for (number,) in log.query("SELECT number FROM numbers ORDER BY ALL")]
    log.close()
    return found


def test_a_backup_is_the_log_of_one_moment_while_it_is_written(log: Log, tmp_path: Path) -> None:
    catalog = tmp_path / "log" / "catalog.sqlite"
    made = []
    for number in range(4):
        log.query(f"INSERT INTO numbers VALUES ({number})")
        made.append(back_up(catalog))
    assert backups(catalog) == made[::-1]
    assert [numbers(backup, tmp_path / "log" / "data") for backup in made] == [[*range(n + 1)] for n in range(4)]


def test_a_few_are_kept_and_private(log: Log, tmp_path: Path) -> None:
    catalog = tmp_path / "log" / "catalog.sqlite"
    made = [back_up(catalog) for _ in range(KEEP + 2)]
    assert backups(catalog) == made[: -KEEP - 1 : -1]
    assert {path.stat().st_mode & 0o077 for path in backups(catalog)} == {0}
    assert {path.suffix for path in (tmp_path / "log" / "backups").iterdir()} == {".sqlite"}


def test_a_damaged_catalog_makes_no_backup(log: Log, tmp_path: Path) -> None:
    catalog = tmp_path / "log" / "catalog.sqlite"
    log.close()
    good = back_up(catalog)
    with sqlite3.connect(catalog) as connection:
        connection.execute("DELETE FROM ducklake_snapshot")
    connection.close()
    with pytest.raises(Unavailable, match=r"damaged \(it has no snapshot\)"):
        back_up(catalog)
    assert backups(catalog) == [good]


def test_a_backup_that_fails_leaves_the_others(log: Log, tmp_path: Path) -> None:
    catalog = tmp_path / "log" / "catalog.sqlite"
    good = back_up(catalog)
    with pytest.raises(OSError, match="could not be copied"):
        back_up(catalog.with_name("missing") / "catalog.sqlite")
    assert backups(catalog) == [good]


def test_the_writers_locks_survive_a_backup(log: Log, tmp_path: Path) -> None:
    """Closing a file frees all locks a process has on it: were the copy made in this process, others could write."""
    catalog = tmp_path / "log" / "catalog.sqlite"
    log.connection.execute("BEGIN")
    log.connection.execute("INSERT INTO numbers VALUES (1)")
    before = locks(catalog)
    back_up(catalog)
    assert locks(catalog) == before
    log.connection.execute("COMMIT")


def locks(catalog: Path) -> set[str]:
    """This process's locks on the catalog's files, as the kernel lists them."""
    inodes = {str(path.stat().st_ino) for path in catalog.parent.glob("catalog.sqlite*")}
    lines = Path("/proc/locks").read_text().splitlines()
    held = [line.split() for line in lines if " -> " not in line]  # That is one who waits, of any process.
    return {" ".join(lock[1:]) for lock in held if lock[5].split(":")[2] in inodes and lock[4] == str(os.getpid())}


def test_as_a_program_it_copies(log: Log, tmp_path: Path) -> None:
    source, target = tmp_path / "log" / "catalog.sqlite", tmp_path / "copy"
    command = [sys.executable, "-m", "proxy.backup", str(source), str(target)]
    assert subprocess.run(command).returncode == 0
    assert trouble(target) is None
    assert b"FileExistsError" in subprocess.run(command, capture_output=True).stderr
