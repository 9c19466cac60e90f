"""A migrated log without the seconds that migrating takes: a copy of one that was."""

import atexit
import functools
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from proxy.log import Log, open_log
from proxy.migrations import migrate
from proxy.settings import LogSettings


def migrated(home: Path) -> Log:
    """The log of this home, which has none yet."""
    shutil.copytree(_template() / "log", home / "log")
    with closing(sqlite3.connect(home / "log" / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'", [f"{home}/log/data/"])
    return open_log(LogSettings(), home)


@functools.cache
def _template() -> Path:
    home = Path(tempfile.mkdtemp(prefix="stillroom-tests-"))
    atexit.register(shutil.rmtree, home)
    log = open_log(LogSettings(), home)
    migrate(log)
    log.close()
    return home
