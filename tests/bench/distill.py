"""What each kind of student is worth on recorded traffic, beside its controls.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.distill --data FOLDER       (make bench-distill DATA=FOLDER)

FOLDER holds one folder a set with `train.jsonl` (earlier) and `test.jsonl` (later). Prints Markdown. What is
made two ways has benchmarks of its own: with hard or soft labels `tests.bench.soft`, with or without the teacher's
reasons `tests.bench.ab`, for one language and teacher or for many `tests.bench.languages`.

    --quick          small budgets for the language model: about 15 minutes on two cores
    --keep FILE      write every answer, one student a line
    --answers FILE   no training: the tables again from what --keep wrote
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distiller.scikit import scikit_learn
from distiller.settings import STUDENTS, DistillerSettings
from tests.bench.distill_answers import Limits, Line, base_once, read_set, student
from tests.bench.distill_table import majority, table, verdicts
from tests.bench.gate import chosen_sets
from tests.bench.kept import add_source, keeping, read

_QUICK_LATER = 300  # later rows of a set; the cheap students answer all of them


def main() -> int:
    """Run and print."""
    arguments = _arguments()
    found = read(arguments.answers) if arguments.answers else list(_made(arguments))
    own = [one for one in found if one["part"] == "own"]
    controls = {one["set"]: one for one in found if one["part"] == "controls"}
    print(table(own, controls, arguments.margin, arguments.alpha, arguments.seed))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_source(parser)
    parser.add_argument("--sets", default="", help="names with commas between them (default: all)")
    parser.add_argument("--kinds", default=",".join(DistillerSettings().students), help=f"of {', '.join(STUDENTS)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _made(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    started, keep = time.monotonic(), keeping(arguments.keep)

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    def kept(part: str, answers: dict[str, Any]) -> dict[str, Any]:
        return keep({"part": part, **answers})

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        limits = _limits(arguments, folder)
        for path in (arguments.data / name for name in chosen_sets(arguments)):
            earlier, later = read_set(path)
            later = later[:_QUICK_LATER] if arguments.quick else later
            made = [
                kept("own", student(path.name, kind, earlier, later, limits, folder, say))
                for kind in arguments.kinds.split(",")
            ]
            yield from made
            given = [one for one in made if "why" not in one]
            if given:
                yield kept("controls", _controls(given[0], earlier, later))


def _limits(arguments: argparse.Namespace, folder: Path) -> Limits:
    options = DistillerSettings(
        min_exchanges=100, max_rows=4000, holdout=300, seed=arguments.seed, threads=2, control_rows=16,
    )  # fmt: skip
    if arguments.quick:
        options = replace(
            options, max_rows=1000, train_tokens=6_000, encoder_tokens=30_000, epochs=2, rank=8, control_rows=4,
            holdout=120, max_tokens=256,
        )  # fmt: skip
    test, characters, fewest = (40, 3_000, 12) if arguments.quick else (300, 25_000, 80)
    return Limits(base_once(options, folder), test, characters, fewest)


def _controls(answers: dict[str, Any], earlier: Sequence[Line], later: Sequence[Line]) -> dict[str, Any]:
    """What needs no student: the most common answer, and naive Bayes on words where the answers are labels."""
    taught = [line.row.answer or "" for line in earlier]
    found = {"set": answers["set"], "majority": majority(answers, taught)}
    if answers["evaluator"] == "label":
        said = _naive_bayes([_asked(line) for line in earlier], taught, [_asked(line) for line in later])
        rows = [
            {"text": text, "teacher": line.row.answer, "finished": True} for text, line in zip(said, later, strict=True)
        ]
        found["naive Bayes"] = float(verdicts(answers, rows, "teacher").mean())
    return found


def _naive_bayes(texts: Sequence[str], labels: Sequence[str], asked: Sequence[str]) -> list[str]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    words = CountVectorizer()
    with scikit_learn():
        fitted = MultinomialNB().fit(words.fit_transform(texts), labels)
        return [str(label) for label in fitted.predict(words.transform(asked))]


def _asked(line: Line) -> str:
    return "\n".join(str(message["content"]) for message in line.row.messages if message["role"] == "user")


if __name__ == "__main__":
    sys.exit(main())
