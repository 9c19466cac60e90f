"""Owns whether a controller works on a home folder now. Must not know what it does."""

import fcntl
from pathlib import Path


def controlled(home: Path) -> bool:
    """Whether some process holds the controller's lock.

    It is tried for and let go at once, shared, so that two who look do not see each other.
    """
    try:
        with (home / "controller.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
