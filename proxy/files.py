"""Owns putting a small file in place in one step: whoever reads it finds the old content or the new, never a part.

Must not know what is in it.
"""

import contextlib
import os
import secrets
from pathlib import Path


def put(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write whole beside `path`, sync, and rename; its folder is made where it is missing. OSError leaves the old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")  # Another process may be putting its own.
    scratch.unlink(missing_ok=True)
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask says
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(fd)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put_once(path: Path, content: bytes) -> None:
    """Write a secret whole, for the owner alone, unless one is there: of several at once the first stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # whatever the umask says
            file.write(content)
            file.flush()
            os.fsync(fd)
        with contextlib.suppress(FileExistsError):  # A link appears whole, and only once: the others read the first's.
            path.hardlink_to(fresh)
    finally:
        fresh.unlink()
