"""Soft labels end to end: a real teacher that tells log-probabilities, and students that learn with and without them.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.soft --data FOLDER       (make bench-soft DATA=FOLDER)

FOLDER holds one folder a set with `train.jsonl` (earlier) and `test.jsonl` (later). SmolLM2-135M learns one set's
recorded answers and is served by vLLM on this CPU. OpenAI's client asks it, through a whole Stillroom with
`teacher.logprobs_share = 1`, for answers to rows it never saw; they are recorded, and their task is discovered. From
two bases a student learns each time from the answers alone and from the log-probabilities too: same rows, steps, seed.
The teacher's answers to the later rows judge them. Prints Markdown.

The bases (`tests.bench.bases`) are every second layer of the teacher, and SmolLM2-135M, not the teacher, with a small
vocabulary of its own: what does not share the teacher's tokens knows nothing of the task either.

    --quick     fewer rows: an estimated 12 minutes on two idle cores instead of 30
    --set NAME  another set of FOLDER
    --folder F  leave log, teacher and students there
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distiller.base import DEFAULT_BASE, resolve_base
from distiller.settings import DistillerSettings, Settings, load_settings
from distiller.train import TrainSettings
from proxy.errors import StillroomError
from proxy.traffic_file import Row, read_traffic
from tests.bench.bases import halved, mended, respelled
from tests.bench.processes import Failed
from tests.bench.soft_students import Student, student, teachers_agreement
from tests.bench.soft_table import HARD_KIND, SOFT_KIND, tables
from tests.bench.soft_teacher import MAX_TOKENS, Say, Spoken, progress, short, spoken, taught

_VOCABULARY = 4096
_THREADS = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """Rows that the teacher learns, rows it is asked for students to learn, later rows; epochs; tokens to mend with."""

    taught: int
    asked: int
    later: int
    holdout: int
    epochs: int
    mend_tokens: int
    learning_rate: float = 1e-3


_WHOLE = Budget(taught=600, asked=700, later=300, holdout=100, epochs=2, mend_tokens=30_000)
_QUICK = Budget(taught=240, asked=300, later=150, holdout=50, epochs=2, mend_tokens=10_000)


def main() -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of sets")
    parser.add_argument("--set", default="media_bias", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="a new folder to leave everything in: log, teacher, students")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    budget = _QUICK if given.quick else _WHOLE
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # A `kill` cleans up just as Ctrl-C does.
    try:
        with contextlib.ExitStack() as stack:
            folder = (given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            base = resolve_base(DEFAULT_BASE, Path(tempfile.gettempdir()) / "stillroom-bench-bases")
            run(base, given.data / given.set, budget, given.seed, folder, _saying())
    except KeyboardInterrupt:
        return 130
    except (Failed, StillroomError) as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


def run(base: Path, data: Path, budget: Budget, seed: int, folder: Path, say: Say) -> list[Student]:
    """All of it, below `folder`; prints what came of it, and returns the students, hard and soft by turns."""
    started = time.monotonic()
    earlier, later = (short(base, read_traffic(data / f"{part}.jsonl")) for part in ("train", "test"))
    taught_rows, asked = earlier[: budget.taught], earlier[budget.taught : budget.taught + budget.asked]
    lora = TrainSettings(budget.epochs, budget.learning_rate, max_tokens=MAX_TOKENS, seed=seed, threads=_THREADS)
    teacher = taught(base, taught_rows, lora, folder, say)
    told = spoken(teacher, asked, later[: budget.later], folder, say)
    settings = _settings(told.config, budget, seed)
    print(_heading(data.name, len(taught_rows), teachers_agreement(settings, later), told), flush=True)
    bases = _bases(base, teacher, taught_rows, budget, lora, folder, say)
    students = [
        student(name, grown, kind, settings, told.task, say)
        for name, grown in bases.items()
        for kind in (HARD_KIND, SOFT_KIND)
    ]
    _check_pairs(students)
    print(f"{tables(students, seed)}\n\n{_NOTES}\n\n{(time.monotonic() - started) / 60:.1f} minutes in all")
    return students


def _bases(
    base: Path, teacher: Path, rows: Sequence[Row], budget: Budget, lora: TrainSettings, folder: Path, say: Say
) -> Mapping[str, Path]:
    """Each is mended on what users said in the rows the teacher learned: no student has an answer to those."""
    texts = [str(message["content"]) for row in rows for message in row.messages if message["role"] == "user"]
    halved(teacher, folder / "half")
    respelled(base, texts, _VOCABULARY, folder / "respelled")
    names = {"half the teacher's layers": "half", "another tokenizer": "respelled"}
    whole = replace(lora, learning_rate=budget.learning_rate / 2)
    for name in names.values():
        mended(folder / name, texts, budget.mend_tokens, whole, folder / f"{name}-mended", progress(name, say))
    return {said: folder / f"{name}-mended" for said, name in names.items()}


def _settings(config: Path, budget: Budget, seed: int) -> Settings:
    options = DistillerSettings(
        min_exchanges=100, max_rows=budget.asked, holdout=budget.holdout, control_rows=16, epochs=budget.epochs,
        learning_rate=budget.learning_rate, max_tokens=MAX_TOKENS, seed=seed, threads=_THREADS,
    )  # fmt: skip
    return replace(load_settings(config), distiller=options)


def _check_pairs(students: Sequence[Student]) -> None:
    """Hard and soft learned from the same exchanges, in as many steps; Failed where they did not."""
    for one, other in _in_pairs(students):
        if (one.exchanges, one.steps) != (other.exchanges, other.steps):
            raise Failed(f"{one.base}: {one.kind} and {other.kind} did not learn from the same rows")


def _in_pairs(students: Sequence[Student]) -> Iterator[tuple[Student, Student]]:
    yield from zip(students[::2], students[1::2], strict=True)


def _heading(name: str, rows: int, agreement: float, told: Spoken) -> str:
    counted = ", ".join(f"{word} {count}" for word, count in told.counted.items())
    return (
        f"{name}: teacher SmolLM2-135M, {rows} rows learned, {agreement:.3f} of the recorded answers to later rows;"
        f" served by vLLM. {told.requests} requests through Stillroom, {told.streamed} of them streams; discovered task"
        f" `{told.task}`. Log-probabilities: {counted}; seen by a client {told.seen}, in the log {told.kept}.\n"
    )


def _saying() -> Say:
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    return say


_NOTES = """agreement: mean verdict against the teacher's answers to later rows. KL: to the teacher's recorded
distribution, over its known tokens and "other", mean over the soft positions of a later row. First token: how far the
probability of the student's likeliest one is from how often the teacher wrote it (answers), and from what the teacher
gave it (odds); both ECE in ten bins. holdout, untuned base, majority: as the distiller itself reports them. minutes:
curation, training, holdout and controls."""


if __name__ == "__main__":
    sys.exit(main())
