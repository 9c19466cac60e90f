"""Whether rationales pay: students with and without, of the same rows, in as many steps, from the same seed.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.ab --data FOLDER       (make bench-ab DATA=FOLDER)

FOLDER holds one folder a set with `train.jsonl`, whose latest rows judge. Prints Markdown. Where answers reason before
they answer, those reasons are the rationales, and verdicts are on all but them: left out ("without"), a task of their
own ("beside"), or in the answer as recorded ("before"). Nobody is asked: where no rationale is recorded there is
nothing to try, and the table says so. Hard against soft labels has a benchmark of its own.

    --quick          small budgets, meant for 8 minutes on two idle cores; not timed yet
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from distiller.ab import Trial, trial
from distiller.adapter_student import adapter_student
from distiller.dataset import Dataset, dataset
from distiller.engines import VLLM
from distiller.explained import Why, whys, without
from distiller.explained_student import apart, explained_student
from distiller.proposal import Proposal, mean, propose
from distiller.recipes import Kind
from distiller.scoring import Answered, Score, scoring
from distiller.settings import DistillerSettings, Settings
from proxy.traffic_file import Row
from router.calibration import reliability
from router.coverage import Plan
from tests.bench.distill_answers import base_once, read_set
from tests.bench.gate import chosen_sets
from tests.bench.gate_answers import fill
from tests.logs import migrated

WITHOUT, BESIDE, BEFORE = "without", "beside", "before"
_SETS = "gsm8k_gpt4o,github_issue_triage"
_HEAD = (
    "| set | rationales | agreement (rows) | calibration error | tokens an answer | rows learned | steps | minutes "
    "| against without (95 %) | p |",
    "|---|---|--:|--:|--:|--:|--:|--:|---|--:|",
)


@dataclass(frozen=True, slots=True)
class Arm:
    """One student: its kind says how it learned rationales; `against` is None for the one without."""

    made: Proposal
    minutes: float
    against: Trial | None


def main() -> int:
    """Run and print."""
    arguments = _arguments()
    print("\n".join(_HEAD))
    with tempfile.TemporaryDirectory() as scratch:
        options = base_once(_options(arguments), Path(scratch))
        for name in chosen_sets(arguments):
            earlier, _ = read_set(arguments.data / name)
            home = Path(scratch) / name
            home.mkdir()
            for line in lines(name, [line.row for line in earlier], Settings(home=str(home), distiller=options)):
                print(line, flush=True)
    return 0


def lines(name: str, rows: Sequence[Row], settings: Settings) -> Iterator[str]:
    """The set's lines of the table."""
    log = migrated(settings.folder)
    fill(log, rows, name)
    data = dataset(log, name, settings)
    why = whys(data)
    if not why.keys:
        yield f"| {name} | none recorded: asking the teacher why (`stillroom explain`) costs money, so not tried |"
    else:
        with scoring(log, settings, name, data.evaluator, data.declared) as score:
            yield from map(partial(_line, name), arms(data, why, settings, _bare(score, why.keys)))
    log.close()


def arms(data: Dataset, why: Why, settings: Settings, score: Score) -> Iterator[Arm]:
    """Every way of learning from these reasons, the one without them first."""
    kinds = (
        Kind(WITHOUT, VLLM, partial(apart, why=replace(why, texts={}))),
        Kind(BESIDE, VLLM, explained_student, WITHOUT),
        Kind(BEFORE, VLLM, adapter_student, WITHOUT),
    )
    plain: Proposal | None = None
    for kind in kinds:
        folder, started = settings.folder / kind.name, time.monotonic()
        folder.mkdir()
        say = partial(_say, f"{data.task}, {kind.name}", started)
        made = propose(kind, data, settings, folder, score, Plan(), say)
        against = trial(plain, made, settings.distiller.seed) if plain else None
        plain = plain or made
        yield Arm(made, (time.monotonic() - started) / 60, against)


def _bare(score: Score, keys: Sequence[str]) -> Score:
    """Verdicts on all but the reasons."""

    def bare(answers: Sequence[Answered]) -> list[float]:
        return score([
            replace(one, teacher=without(one.teacher, keys), other=without(one.other, keys)) for one in answers
        ])  # fmt: skip

    return bare


def _line(name: str, arm: Arm) -> str:
    made, answers = arm.made.made, arm.made.made.answers
    error = reliability([one.confidence for one in answers], arm.made.verdicts)
    tokens = mean([len(one.logprobs) for one in answers])
    found = arm.against.compared if arm.against else None
    cells = [
        name, arm.made.kind.name, f"{arm.made.score:.3f} ({len(arm.made.verdicts)})",
        f"{error.ece:.3f}" if error else "-", f"{tokens:.0f}", f"{made.rows}", f"{made.facts['steps']}",
        f"{arm.minutes:.1f}", f"{found.difference:+.3f} ({found.lower:+.3f}..{found.upper:+.3f})" if found else "",
        f"{found.p:.3f}" if found else "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _say(name: str, started: float, step: str, at: int, of: int) -> None:
    if at == of:
        print(f"{time.monotonic() - started:6.0f} s  {name}: {step} {at}/{of}", file=sys.stderr, flush=True)


def _options(arguments: argparse.Namespace) -> DistillerSettings:
    options = DistillerSettings(
        min_exchanges=100, max_rows=4000, holdout=200, seed=arguments.seed, threads=2, train_tokens=400_000,
    )  # fmt: skip
    return replace(options, train_tokens=30_000, epochs=2, rank=8, holdout=64) if arguments.quick else options


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of sets")
    parser.add_argument("--sets", default=_SETS, help=f"names with commas between them (default: {_SETS})")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
