"""Whether rationales pay: students with and without, of the same rows, in as many steps, from the same seed.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.ab --data FOLDER       (make bench-ab DATA=FOLDER)

FOLDER holds one folder a set with `train.jsonl`, whose latest rows judge. Prints Markdown. Where answers reason before
they answer, those reasons are the rationales, and verdicts are on all but them: left out ("without"), a task of their
own ("beside"), or in the answer as recorded ("before"). Where none are recorded the teacher would have to be asked,
which costs money: in its place the untuned SmolLM2-135M-Instruct is, served by vLLM on this CPU, by the same questions
as `stillroom explain` asks. What a model that small says is no measure of a real teacher's reasons; that all of it
works on labels is. Hard against soft labels has a benchmark of its own.

    --quick          small budgets: about 15 minutes on two idle cores
    --questions 0    nobody is asked
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from distiller.ab import Trial, trial
from distiller.adapter_student import adapter_student
from distiller.dataset import Dataset, dataset
from distiller.engines import VLLM
from distiller.explained import Why, whys, without
from distiller.explained_student import FEWEST, apart, explained_student
from distiller.explaining import explain
from distiller.proposal import Proposal, mean, propose
from distiller.rationales import Wish, kept
from distiller.recipes import Kind
from distiller.scoring import Answered, Score, scoring
from distiller.settings import DistillerSettings, Settings
from proxy.log import Log
from proxy.settings import TeacherSettings
from proxy.traffic_file import Row
from router.calibration import reliability
from router.coverage import Plan
from tests.bench.distill_answers import base_once, read_set
from tests.bench.engine import vllm
from tests.bench.gate import chosen_sets
from tests.bench.gate_answers import fill
from tests.logs import migrated

WITHOUT, BESIDE, BEFORE = "without", "beside", "before"
_SETS = "gsm8k_gpt4o,media_bias"
_CONTEXT = 2048  # tokens of a question about a row, its answer included
_KEY = "STILLROOM_BENCH_KEY"
_ENOUGH = 1e6  # US dollars; nobody is paid
_HEAD = (
    "| set | rationales (learned) | agreement (rows) | calibration error | tokens an answer | rows learned | steps "
    "| minutes | against without (95 %) | p |",
    "|---|---|--:|--:|--:|--:|--:|--:|---|--:|",
)


@dataclass(frozen=True, slots=True)
class Arm:
    """One student: its kind says how it learned rationales; `against` is None for the one without."""

    made: Proposal
    minutes: float
    against: Trial | None


Tell = Callable[[Log, Settings, Dataset], Dataset]
"""The dataset with rationales that were asked for."""


def main() -> int:
    """Run and print."""
    arguments = _arguments()
    os.environ[_KEY] = "none"
    print("\n".join(_HEAD))
    with tempfile.TemporaryDirectory() as scratch:
        options = base_once(_options(arguments), Path(scratch))
        for name in chosen_sets(arguments):
            earlier, _ = read_set(arguments.data / name)
            home = Path(scratch) / name
            home.mkdir()
            settings = Settings(home=str(home), distiller=options)
            tell = partial(_told, arguments.questions) if arguments.questions else None
            for line in lines(name, [line.row for line in earlier], settings, tell):
                print(line, flush=True)
    return 0


def lines(name: str, rows: Sequence[Row], settings: Settings, tell: Tell | None) -> Iterator[str]:
    """The set's lines of the table; where no rationales are recorded, those are learned that `tell` has."""
    log = migrated(settings.folder)
    fill(log, rows, name)
    data = dataset(log, name, settings)
    why = whys(data)
    if not why.keys and tell:
        data = tell(log, settings, data)
        why = whys(data)
    if len(why.texts) < FEWEST:
        yield f"| {name} | {len(why.texts)} to learn from, {why.contradicting} contradict their answer: not tried |"
    else:
        with scoring(log, settings, name, data.evaluator, data.declared) as score:
            yield from map(partial(_line, name), arms(data, why, settings, _bare(score, why.keys)))
    log.close()


def arms(data: Dataset, why: Why, settings: Settings, score: Score) -> Iterator[Arm]:
    """Every way of learning from these reasons, the one without them first."""
    kinds = [
        Kind(WITHOUT, VLLM, partial(apart, why=replace(why, texts={}))),
        Kind(BESIDE, VLLM, explained_student, WITHOUT),
    ]
    if why.keys:
        kinds.append(Kind(BEFORE, VLLM, adapter_student, WITHOUT))
    plain: Proposal | None = None
    for kind in kinds:
        folder, started = settings.folder / kind.name, time.monotonic()
        folder.mkdir()
        say = partial(_say, f"{data.task}, {kind.name}", started)
        made = propose(kind, data, settings, folder, score, Plan(), say)
        against = trial(plain, made, settings.distiller.seed) if plain else None
        plain = plain or made
        yield Arm(made, (time.monotonic() - started) / 60, against)


def _told(questions: int, log: Log, settings: Settings, data: Dataset) -> Dataset:
    """What the untuned base says, under the names of the models that answered: asked as the teacher would be."""
    names, started = sorted({str(row.request["model"]) for row in data.train}), time.monotonic()
    say = partial(_say, data.task, started)
    with vllm(Path(settings.distiller.base), names, settings.folder / "vllm.log", _CONTEXT) as port:
        asked = replace(settings, teacher=TeacherSettings(url=f"http://127.0.0.1:{port}", key_env=_KEY))
        wish = Wish(_ENOUGH, 1.0, questions)
        done = asyncio.run(explain(log, asked, data.task, wish, asyncio.Event(), say))
    print(
        f"{data.task}: {done.asked.asked} rationales asked for, {done.asked.kept} whole, {done.asked.cut} cut off; "
        f"{done.usable} to learn from, {done.contradicting} contradict their answer ({done.asked.ended})",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return replace(data, rationales=kept(log, [row.exchange_id for row in data.train]))


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
    told = made.facts.get("rationales")
    found = arm.against.compared if arm.against else None
    cells = [
        name, f"{arm.made.kind.name} ({told})" if told else arm.made.kind.name,
        f"{arm.made.score:.3f} ({len(arm.made.verdicts)})",
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
    parser.add_argument("--questions", type=int, help="to ask where no reasons are recorded (default: 400, quick: 120)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.questions is None:
        given.questions = 120 if given.quick else 400
    return given


if __name__ == "__main__":
    sys.exit(main())
