"""Owns the course of a distillation as a file: what it is doing, its losses and scores, for who watches and for later.

    state/courses/<id>.jsonl    {"task": ..., "started": ...}, then a line for each thing told, then how it ended

A line is written twice a second at most, and ever more rarely as the file grows; between two lines losses are averaged.
While the process lives it holds a lock on the file: so a reader can tell a distillation that goes on from one that was
killed. Of all files the newest `KEPT` stay. Must not know how students are made; a file that cannot be written stops
nobody from learning.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from proxy.errors import StillroomError
from proxy.ids import ulid

KEPT = 30
EVERY = 0.5  # seconds between two lines about the same thing
MANY = 1000  # lines after which it is twice as long
_LONGEST_LINE = 400  # characters of why something failed

Told = Callable[[str, int, int], None]
"""What is being done, how far it is and of how much."""


@dataclass(frozen=True, slots=True)
class Point:
    """How far one thing was after `seconds`: its mean loss since the point before, and tokens read so far, if any."""

    seconds: float
    what: str
    done: int
    of: int
    loss: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One student that was tried, with its mean verdict on the holdout and the coverage it would have."""

    seconds: float
    kind: str
    base: str | None
    rank: int | None
    score: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Course:
    """One distillation as its file tells it; `student` is what came of it, `failed` why nothing did."""

    id: str
    task: str
    started: datetime
    points: tuple[Point, ...]
    scored: tuple[Scored, ...]
    running: bool
    student: str | None = None
    failed: str | None = None

    @property
    def seconds(self) -> float:
        """Until the last thing it told."""
        told = [*(one.seconds for one in self.points), *(one.seconds for one in self.scored)]
        return max(told, default=0.0)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the training that was told last, from its first line to its last; None where there is no telling yet."""
        told = [one for one in self.points if one.tokens is not None]
        own = [one for one in told if one.what == told[-1].what]
        for place in range(len(own) - 1, 0, -1):  # From where it began anew, under the same name, if it did.
            if own[place].done < own[place - 1].done:
                own = own[place:]
                break
        if len(own) < 2 or own[-1].seconds <= own[0].seconds:
            return None
        return ((own[-1].tokens or 0) - (own[0].tokens or 0)) / (own[-1].seconds - own[0].seconds)


class Telling:
    """Passes on what it is told, and writes it down; a `distiller.recipes.Report`."""

    def __init__(self, file: IO[bytes] | None, told: Told, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a `file` nothing is written; `clock` counts seconds."""
        self._file, self._told, self._clock = file, told, clock
        self._started = clock()
        self._every, self._lines = EVERY, 0
        self._last: tuple[str, float] = "", 0.0
        self._losses: list[float] = []

    def __call__(
        self, step: str, done: int, total: int, loss: float | None = None, tokens: int | None = None, /
    ) -> None:
        """One more step of something."""
        self._told(step, done, total)
        self._losses += [] if loss is None else [loss]
        now = self._clock() - self._started
        what, last = self._last
        if step == what and done < total and now - last < self._every:
            return
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        self._last, self._losses = (step, now), []
        self.write(what=step, done=done, of=total, loss=mean, tokens=tokens)

    def scored(self, kind: str, base: str | None, rank: int | None, score: float, coverage: float) -> None:
        """A student was tried."""
        self.write(kind=kind, base=base, rank=rank, score=score, coverage=coverage)

    def write(self, **line: Any) -> None:
        """One line, with the time; what cannot be written is not missed."""
        if self._file is None:
            return
        line = {"seconds": round(self._clock() - self._started, 2)} | {k: v for k, v in line.items() if v is not None}
        with suppress(OSError):
            self._file.write(json.dumps(line).encode() + b"\n")
        self._lines += 1
        if self._lines % MANY == 0:
            self._every *= 2


@contextmanager
def telling(folder: Path, task: str, told: Told) -> Iterator[Telling]:
    """The course of one distillation; that it failed is written down on the way out, what came of it is not."""
    file = _begun(folder, task)
    course = Telling(file, told)
    try:
        yield course
    except StillroomError as error:
        course.write(failed=str(error)[:_LONGEST_LINE])
        raise
    except BaseException as error:
        course.write(failed=f"interrupted: {type(error).__name__}")
        raise
    finally:
        if file is not None:
            file.close()


def courses(folder: Path) -> list[Course]:
    """Those that are kept, the newest first; a file that cannot be read is left out."""
    found = [read(path) for path in sorted(folder.glob("*.jsonl"), reverse=True)]
    return [course for course in found if course is not None]


def read(path: Path) -> Course | None:
    """The course in a file; None where it is none, or gone."""
    try:
        with path.open(encoding="utf-8") as file:
            running = _locked(file)
            first, *lines = [one for line in file if (one := _object(line)) is not None] or [{}]
        return _course(path.stem, first, lines, running)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _begun(folder: Path, task: str) -> IO[bytes] | None:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.jsonl"), reverse=True)[KEPT - 1 :]:
            old.unlink()
        file = (folder / f"{ulid()}.jsonl").open(
            "xb", buffering=0
        )  # What did not fit must not come up again at the end.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({"task": task, "started": datetime.now(UTC).isoformat()}).encode() + b"\n")
        return file
    return None


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _object(line: str) -> dict[str, Any] | None:
    """A line that is whole; the last one may be half written."""
    with suppress(ValueError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


def _course(identity: str, first: Mapping[str, Any], lines: list[dict[str, Any]], running: bool) -> Course:
    points = tuple(Point(**line) for line in lines if "what" in line)
    scored = tuple(Scored(**{"base": None, "rank": None} | line) for line in lines if "kind" in line)
    ends = {key: line[key] for line in lines for key in ("student", "failed") if key in line}
    started = datetime.fromisoformat(first["started"])
    if not ends and not running:
        ends = {"failed": "it ended without a word: its process was killed"}
    return Course(identity, str(first["task"]), started, points, scored, running and not ends, **ends)
