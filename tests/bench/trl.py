"""Our trainer against TRL's SFTTrainer: same rows, base, adapter, optimizer and machine, taking turns in one run.

    python -m tests.bench.trl [--data FOLDER] [--rows N] [--rounds N]      (make bench-trl; about 20 minutes)

Rows are those of a recorded set (its earlier traffic), or made-up ones. Both see the same token ids and learn the
completions only. TRL is installed from PyPI into a folder that is thrown away, beside this environment's torch,
transformers and peft, and gets its best settings on a CPU: no gradient checkpointing, base and adapter without autocast
or with it, packed or padded, each with one thread and with one a core; the best of all these is what ours is compared
with. Ours gets all cores, as in every distillation. Tokens are counted without padding. Each run is a process of its
own, so that its memory is; loading the model is not timed. The loss is that of the saved adapter, on rows that neither
has seen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distiller.base import DEFAULT_BASE, resolve_base
from distiller.examples import Encoded, encode
from distiller.sample_traffic import sample_traffic
from distiller.sweep import set_aside, validation_loss
from distiller.train import TrainSettings, plan
from distiller.train_job import Job, write_rows
from distiller.weights import load_for_training
from proxy.traffic_file import Row, read_traffic
from router.prompt import static_lines, student_messages
from tests.bench.evidence import table
from tests.bench.processes import Failed

ROOT = Path(__file__).parent.parent.parent
# TRL and what it needs that is not here; nothing of these brings a torch or transformers along.
PACKAGES = (
    "trl==1.16.0",
    "datasets==4.8.0",
    "pandas==3.1.1",
    "pyarrow==26.0.1",
    "xxhash==4.1.0",
    "multiprocess==0.70.19",
)
SET = "github_issue_triage"
LEAN = {"gradient_checkpointing": False, "per_device_train_batch_size": 1}
BF16 = {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}}
FOUR = {"per_device_train_batch_size": 4}
OURS = "Stillroom"
TRL: dict[str, dict[str, Any]] = {
    "TRL, packed, bfloat16": {**LEAN, **BF16, "packing": True},
    "TRL, packed, autocast": {**LEAN, "bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}, "packing": True},
    "TRL, padded, bfloat16": {**LEAN, **BF16, **FOUR, "train_sampling_strategy": "group_by_length"},
    "TRL, padding-free, bfloat16": {**LEAN, **BF16, **FOUR, "padding_free": True, "max_length": None},
}
ALONE = ", one thread"


@dataclass(frozen=True, slots=True)
class Course:
    """What everybody trains on: base, file of rows, rows for the loss, settings."""

    base: Path
    rows: Path
    aside: Sequence[Encoded]
    settings: TrainSettings
    steps: int


@dataclass(frozen=True, slots=True)
class Took:
    """One run: tokens without padding, seconds, MB, steps, nats per completion token."""

    tokens: int
    seconds: float
    peak_mb: float
    steps: int
    loss: float


def main() -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help=f"folder of recorded sets, for its {SET}")
    parser.add_argument("--rows", type=int, default=120, help="of which a fifth is for the loss")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            course = _course(given.data, given.rows, Path(folder))
            packages = _installed(Path(folder) / "packages")
            took = _rounds(course, packages, given.rounds, Path(folder))
    except KeyboardInterrupt:
        return 130
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    _print(took, f"{given.rows} rows of {SET if given.data else 'made-up traffic'}, {course.settings.threads} threads")
    return 0


def _course(data: Path | None, count: int, folder: Path) -> Course:
    from transformers import AutoTokenizer

    base = resolve_base(DEFAULT_BASE, Path(tempfile.gettempdir()) / "stillroom-bench-bases")
    settings = TrainSettings(epochs=1, learning_rate=1e-3, threads=len(os.sched_getaffinity(0)))
    traffic = read_traffic(data / SET / "train.jsonl") if data else sample_traffic(2 * count, 0)
    encoded = [row for row in _encoded(AutoTokenizer.from_pretrained(base), traffic, 2 * count) if _fits(row, settings)]
    if len(encoded) < count:
        raise Failed(f"only {len(encoded)} of {count} rows are short enough: give fewer --rows")
    learned, aside = ([encoded[index] for index in part] for part in set_aside(count, 0))
    write_rows(folder / "rows.jsonl", learned)
    steps = len(plan([len(row.input_ids) for row in learned], settings))
    return Course(base, folder / "rows.jsonl", aside, settings, steps)


def _encoded(tokenizer: Any, traffic: Sequence[Row], count: int) -> list[Encoded]:
    """The newest rows as a student would see them, its instructions pruned."""
    newest = [row for row in traffic if row.answer is not None][-count:]
    static = static_lines([row.messages for row in newest])
    return [encode(tokenizer, student_messages(row.messages, static), row.answer or "") for row in newest]


def _fits(row: Encoded, settings: TrainSettings) -> bool:
    return len(row.input_ids) <= settings.max_tokens


def _installed(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    if subprocess.run(command).returncode:
        raise Failed(f"cannot install {', '.join(PACKAGES)} into a folder: is PyPI within reach?")
    return folder


def _rounds(course: Course, packages: Path, rounds: int, folder: Path) -> dict[str, list[Took]]:
    """All contenders in turn, so that a slow moment hits each of them."""
    rivals = [name + threads for name in TRL for threads in ("", ALONE)]
    took: dict[str, list[Took]] = {name: [] for name in (OURS, *rivals)}
    for number in range(rounds):
        for name, runs in took.items():
            place = folder / f"run-{number}-{len(runs)}-{list(took).index(name)}"
            place.mkdir()
            runs.append(_ours(course, place) if name == OURS else _trl(course, name, packages, place))
            print(f"{name}: {runs[-1].tokens / runs[-1].seconds:.0f} tokens/s", file=sys.stderr, flush=True)
    return took


def _ours(course: Course, place: Path) -> Took:
    job = Job(str(course.base), str(course.rows), str(place / "adapter"), course.settings)
    return _run("distiller.train_job", asdict(job), place, {}, course)


def _trl(course: Course, name: str, packages: Path, place: Path) -> Took:
    job = {
        "base": str(course.base),
        "rows": str(course.rows),
        "out": str(place / "adapter"),
        "scratch": str(place / "scratch"),
        "epochs": course.settings.epochs,
        "learning_rate": course.settings.learning_rate,
        "tokens_per_step": course.settings.tokens_per_step,
        "warmup_steps": max(1, course.steps // 20),
        "threads": 1 if name.endswith(ALONE) else course.settings.threads,
        "options": TRL[name.removesuffix(ALONE)],
    }
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "cache")}
    return _run("tests.bench.trl_child", job, place, {"PYTHONPATH": str(packages), **quiet}, course)


def _run(module: str, job: dict[str, Any], place: Path, environment: dict[str, str], course: Course) -> Took:
    file = place / "job.json"
    file.write_text(json.dumps(job))
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment}
    command = [sys.executable, "-m", module, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{module} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    loss = _loss(course, place / "adapter")
    return Took(said["tokens"], said["seconds"], said["peak_mb"], said["steps"], loss)


def _loss(course: Course, adapter: Path) -> float:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_for_training(course.base), adapter).eval()
    return validation_loss(model, course.aside, course.settings.tokens_per_step)


def _print(took: dict[str, list[Took]], title: str) -> None:
    """The fastest run of each: whatever else the machine did only ever slows one down."""
    best = {name: min(runs, key=lambda run: run.seconds) for name, runs in took.items()}
    rival = max(run.tokens / run.seconds for name, run in best.items() if name != OURS)
    head = ("trainer", "tokens/s", "of the best TRL", "seconds", "steps", "tokens", "peak MB", "loss afterwards")
    table(f"{title}, the best of {len(took[OURS])} runs", head, [_row(name, run, rival) for name, run in best.items()])


def _row(name: str, run: Took, rival: float) -> tuple[str, ...]:
    speed = run.tokens / run.seconds
    numbers = (f"{speed:.0f}", f"{speed / rival:.2f}", f"{run.seconds:.1f}", str(run.steps), str(run.tokens))
    return (name, *numbers, f"{run.peak_mb:.0f}", f"{run.loss:.3f}")


if __name__ == "__main__":
    sys.exit(main())
