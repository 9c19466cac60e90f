"""Owns where workers count: in memory, where the system has a place for that, and else under the home folder.

Counters are mapped files, and a full disk kills whoever touches a page of one that has no room yet: traffic would end
for the sake of a number. Must not know what is counted.
"""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "stillroom-"
_NEEDED = 32 << 20  # bytes; a worker takes some 4 MB, and little of that is written to
_log = logging.getLogger("stillroom.serve")


@contextlib.contextmanager
def metrics_folder(home: Path, memory: Path = Path("/dev/shm")) -> Iterator[Path]:
    """An empty folder while the context lasts, to which the path `home` leads, for whoever reads.

    What a killed process left is removed. Where nothing can be made at `home`, it is said and the folder is good.
    """
    _remove(home, memory)
    folder = _in_memory(memory) or home
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        if folder is home:
            home.mkdir()
        else:
            home.symlink_to(folder)
    except OSError as error:
        _log.error("/metrics lacks what workers count: %s: %s", home, error.strerror)
    try:
        yield folder
    finally:
        _remove(home, memory)


def _in_memory(memory: Path) -> Path | None:
    try:
        if shutil.disk_usage(memory).free >= _NEEDED:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=memory))
    except OSError:  # No such place here, or not for us.
        pass
    return None


def _remove(home: Path, memory: Path) -> None:
    if home.is_symlink():
        target = home.readlink()
        if target.parent == memory and target.name.startswith(_PREFIX):
            shutil.rmtree(target, ignore_errors=True)
        home.unlink()
    else:
        shutil.rmtree(home, ignore_errors=True)
