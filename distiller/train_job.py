"""Owns a training run as a file, so that a launcher can start it in several processes at once.

    accelerate launch --multi_gpu --num_processes 2 -m distiller.train_job JOB.json

or torchrun in its place; without a GPU the processes talk over gloo. `run_job` is also what a worker of Ray Train is to
call, which finds itself in the same kind of process group; that was never run. Must not know what rows mean.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from distiller.checkpoints import Checkpoints
from distiller.examples import Encoded
from distiller.projection import Target
from distiller.train import Trained, TrainSettings, train
from proxy.errors import BadInput, StillroomError
from proxy.settings import parse


@dataclass(frozen=True, slots=True)
class Job:
    """A call of `train` as plain values: folders of base and result, a file of `write_rows`.

    With `checkpoints`, a folder all processes see, one is written after each `every` steps.
    """

    base: str = ""
    rows: str = ""
    out: str = ""
    settings: TrainSettings = field(default_factory=TrainSettings)
    checkpoints: str = ""
    every: int = 50


def main(arguments: Sequence[str]) -> int:
    """Runs the job in the one file named; the first process prints what was done as JSON. Returns the exit code."""
    try:
        if len(arguments) != 1:
            raise BadInput("give one file: python -m distiller.train_job JOB.json")
        trained = run_job(read_job(Path(arguments[0])))
    except StillroomError as error:
        print(error, file=sys.stderr)
        return 1
    if PartialState().is_main_process:
        print(json.dumps(asdict(trained)))
    return 0


def run_job(job: Job) -> Trained:
    """Trains as one of the processes there are."""
    checkpoints = Checkpoints(Path(job.checkpoints), job.every) if job.checkpoints else None
    return train(
        Path(job.base),
        read_rows(Path(job.rows)),
        job.settings,
        Path(job.out),
        lambda *_: None,
        checkpoints=checkpoints,
    )


def read_job(path: Path) -> Job:
    """The job in a JSON file as `asdict(Job)` gives it; BadInput for what is missing or not understood."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the job {path}: {error}") from None
    given = _without_none(table) if isinstance(table, dict) else {}
    job = parse(Job, given)
    if missing := [name for name in ("base", "rows", "out") if not getattr(job, name)]:
        raise BadInput(f"the job {path} lacks {', '.join(missing)}")
    return job


def write_rows(path: Path, rows: Sequence[Encoded]) -> None:
    """One row a line, as JSON."""
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read_rows(path: Path) -> list[Encoded]:
    """The rows `write_rows` wrote."""
    return [_row(**json.loads(line)) for line in path.read_text().splitlines()]


def _row(
    input_ids: list[int], prompt_length: int, soft: Sequence[dict[str, Any] | None] | None, weight: float
) -> Encoded:
    known = None if soft is None else tuple(None if one is None else _target(**one) for one in soft)
    return Encoded(input_ids, prompt_length, known, weight)


def _target(ids: Sequence[int], probabilities: Sequence[float], tail: float) -> Target:
    return Target(tuple(ids), tuple(probabilities), tail)


def _without_none(table: dict[str, object]) -> dict[str, object]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
