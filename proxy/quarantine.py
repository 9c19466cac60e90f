"""Owns what cannot be ingested: lines that are no records, and files that cannot be read now.

Must not know what a record is: it is given something to try lines with. A segment itself is never changed; the lines
that are none are copied to `quarantine/SEGMENT.ndjson`, each with its reason, under its number in the segment, and
byte for byte. Nothing here is ever deleted by Stillroom.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb

MOST_SECONDS = 3600.0
_FOLDER = "quarantine"
_REASON = 500  # characters; the line itself is beside it

Line = tuple[int, bytes]


def sift(segment: Path, try_out: Callable[[Path], object], work: Path) -> tuple[Path, int]:
    """The segment with only its records, and how many other lines went to quarantine.

    `try_out` raises duckdb.Error for a file that holds anything but records. The copy lies in the folder `work`, under
    the segment's name. OSError when the segment cannot be read or the copy not be written.
    """
    lines = [(number, line) for number, line in enumerate(segment.read_bytes().split(b"\n"), 1) if line.strip(b" \t\r")]
    work.mkdir(parents=True, exist_ok=True)
    copy = work / segment.name
    bad = _others(lines, try_out, copy)
    if bad:
        _keep(segment, [(line, bad[line[0]]) for line in lines if line[0] in bad])
    _write(copy, [line for line in lines if line[0] not in bad])
    return copy, len(bad)


def quarantined(spool: Path) -> int:
    """Number of lines in quarantine."""
    return sum(file.read_bytes().count(b"\n") for file in (spool / _FOLDER).glob("*.ndjson"))


def _others(lines: Sequence[Line], try_out: Callable[[Path], object], copy: Path) -> dict[int, str]:
    """Number and reason of each line that is no record, found by halves."""
    _write(copy, lines)
    try:
        try_out(copy)
    except duckdb.Error as error:
        if len(lines) == 1:
            return {lines[0][0]: str(error).replace(str(copy), "")[:_REASON]}
        half = len(lines) // 2
        return _others(lines[:half], try_out, copy) | _others(lines[half:], try_out, copy)
    return {}


def _keep(segment: Path, bad: Sequence[tuple[Line, str]]) -> None:
    """Written whole, then renamed: the same segment sifted again replaces its own file."""
    folder = segment.parent / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{segment.name}.fresh"
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        for (number, line), reason in bad:
            text, encoding = _text(line)
            entry = {"reason": reason, "segment": segment.name, "line": number, "encoding": encoding, "raw": text}
            file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / segment.name)


def _write(copy: Path, lines: Sequence[Line]) -> None:
    with os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.writelines(line + b"\n" for _, line in lines)


def _text(line: bytes) -> tuple[str, str]:
    try:
        return line.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(line).decode("ascii"), "base64"


class Patience:
    """When to try again what failed: after a second, then twice as long each time, at most an hour."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has failed yet; `clock` counts seconds."""
        self._clock = clock
        self._failed: dict[str, tuple[float, float]] = {}

    def due(self, name: str) -> bool:
        """Whether it never failed, or long enough ago."""
        return self._clock() >= self._failed.get(name, (0.0, -1.0))[1]

    def failed(self, name: str) -> float:
        """Note a failure; returns the seconds until the next try."""
        delay = min(self._failed.get(name, (0.5, 0.0))[0] * 2, MOST_SECONDS)
        self._failed[name] = delay, self._clock() + delay
        return delay

    def worked(self, name: str) -> None:
        """Forget its failures."""
        self._failed.pop(name, None)
