"""What the gate lets through and what it declines, on recorded traffic.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.gate --data FOLDER      (make bench-gate DATA=FOLDER; 25 minutes)

FOLDER holds one folder a set with `train.jsonl` (earlier) and `test.jsonl` (later). For each set: one small student by
the project's own distiller, a threshold proposed on rows of train.jsonl it did not train on, then the parity test over
test.jsonl in its order, whole and selective. Then what must be declined: shuffled answers, the most common answer as a
student, a student of another task. Prints Markdown; a declined one that was certified makes the exit code 1.

    --keep FILE      write every answer, one set a line
    --answers FILE   no training: the table again from the answers that --keep wrote
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proxy.errors import Refused
from proxy.traffic_file import read_traffic
from tests.bench.gate_table import table
from tests.bench.kept import add_source, keeping, read


def main() -> int:
    """Run and print; the exit code says whether something that must be declined was certified."""
    arguments = _arguments()
    found = read(arguments.answers) if arguments.answers else list(_answered(arguments))
    text, wrong = table(found, arguments.margin, arguments.alpha, arguments.seed)
    print(text)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_source(parser)
    parser.add_argument("--sets", default="", help="names with commas between them (default: all)")
    parser.add_argument("--train-tokens", type=int, default=40_000, help="a student, prompts and epochs included")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=300, help="most test rows a set")
    parser.add_argument("--holdout", type=int, default=150, help="most rows a threshold is proposed on")
    parser.add_argument("--characters", type=int, default=25_000, help="of answers: bounds the rows of long ones")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _answered(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One mapping a student, as soon as it has answered."""
    from tests.bench.gate_answers import FOREIGN, OWN, SHUFFLED, Budget, Workshop  # torch: not needed for a table

    started, keep = time.monotonic(), keeping(arguments.keep)

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    def kept(kind: str, answers: dict[str, Any]) -> dict[str, Any]:
        return keep({"kind": kind, **answers})

    budget = Budget(
        arguments.train_tokens, arguments.epochs, arguments.rank, arguments.holdout, arguments.rows,
        arguments.characters, arguments.seed, os.cpu_count() or 1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder), budget, arguments.base, say)
        made = []
        for name in chosen_sets(arguments):
            if any(row.tools for row in read_traffic(arguments.data / name / "train.jsonl")):
                yield kept("tools", {"set": name})
                continue
            try:
                made.append(workshop.student(name, arguments.data))
            except Refused as error:
                yield kept("refused", {"set": name, "why": str(error)})
                continue
            yield kept(OWN, workshop.answers(made[-1]))
        for one, other in _pairs([(student.name, student.evaluator) for student in made]):
            yield kept(FOREIGN, workshop.answers(made[one], made[other]))
        if made:
            try:
                yield kept(SHUFFLED, workshop.answers(workshop.student(made[0].name, arguments.data, shuffled=True)))
            except Refused as error:
                yield kept("refused", {"set": f"{made[0].name}, shuffled", "why": str(error)})


def chosen_sets(arguments: argparse.Namespace) -> list[str]:
    """The sets that were asked for, all without a word; ends the program where one is not there."""
    found = sorted(path.parent.name for path in arguments.data.glob("*/train.jsonl"))
    wanted = [name for name in arguments.sets.split(",") if name] or found
    if missing := sorted(set(wanted) - set(found)):
        sys.exit(f"{arguments.data} has no set {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    return wanted


def _pairs(students: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """For each evaluator one student and the one put in its place: the next of the same kind, else any other."""
    pairs: dict[str, tuple[int, int]] = {}
    for index, (_, evaluator) in enumerate(students):
        others = sorted((i for i in range(len(students)) if i != index), key=lambda i: students[i][1] != evaluator)
        if others:
            pairs.setdefault(evaluator, (index, others[0]))
    return list(pairs.values())


if __name__ == "__main__":
    sys.exit(main())
