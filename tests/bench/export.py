"""A student of recorded traffic on its way out: traced to its exchanges, rebuilt, exported, asked through llama.cpp.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.export --data FOLDER      (make bench-export DATA=FOLDER; 20 minutes)

FOLDER holds one folder a set with `train.jsonl` (earlier) and `test.jsonl` (later). One student is distilled from the
earlier rows and trained again from the exchanges that it names, which must give the same files. Every artefact is
proved on its holdout; then each that was kept, and the student itself, answer later rows, the artefacts over HTTP to
the real `openai` client. Prints Markdown; a student that is not the same again makes the exit code 1.

    --compressor PYTHON   one with `stillroom[compress]`: makes what is for vLLM too
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

from distiller.bundle import Bundle
from distiller.compress import SCHEMES
from distiller.distill import distill
from distiller.export import FLOORS, MERGED, Exported, export
from distiller.generate import generate
from distiller.lineage import Lineage, lineage, rebuild
from distiller.recipes import Report
from distiller.scoring import Answered, Score, scoring
from distiller.settings import DistillerSettings, ExportSettings, Settings
from distiller.terminal import lineage_summary, rebuilt_summary
from proxy.log import Log
from proxy.traffic_file import Row, read_traffic
from router.prompt import student_messages
from router.registry import candidates
from router.settings import TaskSettings
from tests.bench.evidence import table
from tests.bench.gate_answers import fill
from tests.bench.processes import Failed, running
from tests.logs import migrated

_START_SECONDS = 120.0
_CONTEXT = 4096  # tokens, prompt and answer together

Said = list[str | None]
"""Answers in the order of the rows; None where one did not end."""


def main() -> int:
    """Run and print; the exit code says whether the student is the same again."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        options = DistillerSettings(
            students=("adapter",), min_exchanges=100, train_tokens=given.train_tokens, epochs=2, holdout=given.holdout,
            control_rows=8, seed=given.seed, threads=os.cpu_count() or 1,
        )  # fmt: skip
        compressor = ExportSettings(compressor=given.compressor)
        settings = Settings(home=str(home), distiller=options, export=compressor)
        earlier, later = (read_traffic(given.data / given.set / f"{part}.jsonl") for part in ("train", "test"))
        log = migrated(home)
        try:
            fill(log, earlier[-given.rows :], given.set)
            return _shown(log, settings, given.set, later[: given.test])
        finally:
            log.close()


def _shown(log: Log, settings: Settings, name: str, later: Sequence[Row]) -> int:
    report = _progress()
    bundle = distill(log, settings, name, report).bundle
    print(f"## {name}\n")
    found = lineage(log, bundle)
    lineage_summary(found)
    print(_named(found))
    again = rebuild(log, settings, bundle, report)
    rebuilt_summary(again)
    (candidate,) = candidates(log)
    wanted = [MERGED, *(kind for kind in FLOORS if settings.export.compressor or kind not in SCHEMES)]
    made = export(log, settings, candidate, wanted, Path(settings.home) / "exports", report)
    table("Proved on the holdout", ("artefact", *_PROVED), map(_proved, made))
    with scoring(log, settings, name, candidate.evaluator, TaskSettings()) as score:
        answers = {"the student itself": _by_itself(bundle, later, report)}
        for one in made:
            if one.folder and one.kind not in (MERGED, *SCHEMES):
                answers[one.kind] = _by_llama(Path(one.folder), later, report)
        rows = [(kind, *_scored(said, later, score)) for kind, said in answers.items()]
    table(f"Later traffic, {len(later)} rows", ("answered by", "rows", "score", "not ended"), rows)
    return 0 if again.same else 1


def _named(found: Lineage) -> str:
    """The first and the last of the exchanges, so that it can be seen that they are named one by one."""
    ends = [f"{ids[0]} to {ids[-1]}" for ids in (found.trained, found.judged)]
    return f"learned from {ends[0]}, judged on {ends[1]}; of them {found.held} in the log"


_PROVED = ("MB", "of bf16", "student's score", "its own", "kept", "needed", "rows", "tokens/s", "peak MB", "")


def _proved(one: Exported) -> tuple[str, ...]:
    size = (one.kind, f"{one.size / 1e6:.1f}", f"{one.size / one.bf16_size:.0%}")
    if one.proof is None:
        return (*size, *["-"] * (len(_PROVED) - 3), "made")
    p = one.proof
    return (
        *size, f"{p['student']:.4f}", f"{p['score']:.4f}", f"{p['kept']:.2%}", f"{p['needed']:.0%}", str(p["rows"]),
        f"{p['speed']:.0f}", "?" if p["peak_bytes"] is None else f"{p['peak_bytes'] / 1e6:.0f}",
        "made" if one.passed else "refused",
    )  # fmt: skip


def _by_itself(bundle: Bundle, rows: Sequence[Row], report: Report) -> Said:
    card = bundle.manifest["card"]
    prompts = [student_messages(row.messages, frozenset(card["static"])) for row in rows]
    said = generate(
        Path(card["base"]), bundle.path / "adapter", prompts, card["max_tokens"], os.cpu_count() or 1,
        lambda i, n: report("answers of the student itself", i, n),
    )  # fmt: skip
    return [one.text if one.finished else None for one in said]


def _by_llama(folder: Path, rows: Sequence[Row], report: Report) -> Said:
    """What the artefact says to whole requests, as a client sends them."""
    said: Said = []
    with _edge(folder) as url:
        client = OpenAI(base_url=url, api_key="none")
        for row in rows:
            answer = client.chat.completions.create(model="student", messages=row.messages)  # type: ignore[call-overload]
            (choice,) = answer.choices
            said.append(choice.message.content if choice.finish_reason == "stop" else None)
            report(f"answers of {folder.name}", len(said), len(rows))
    return said


@contextmanager
def _edge(folder: Path) -> Iterator[str]:
    """`stillroom edge` for an exported folder, on a free port; yields its API's URL."""
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "edge.log"
        command = [sys.executable, "-m", "distiller.edge", str(folder), "0", str(_CONTEXT), str(len(cores))]
        with running(command, cores, log) as process:
            deadline = time.monotonic() + _START_SECONDS
            while (found := re.search(r"http://\S+/v1", log.read_text())) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"llama.cpp does not start: {log.read_text()[-500:]}")
                time.sleep(0.05)
            yield found[0]


def _scored(said: Said, rows: Sequence[Row], score: Score) -> tuple[str, ...]:
    """An answer that did not end is wrong, as it is in training's own holdout."""
    ended = [(row, text) for row, text in zip(rows, said, strict=True) if text is not None]
    verdicts = score([Answered("", {"messages": row.messages}, row.answer or "", text) for row, text in ended])
    return str(len(rows)), f"{sum(verdicts) / len(rows):.4f}", str(len(rows) - len(ended))


def _progress() -> Report:
    started = time.monotonic()
    last = [started]

    def report(step: str, at: int, of: int) -> None:
        if time.monotonic() - last[0] > 10 or at == of:
            last[0] = time.monotonic()
            print(f"{last[0] - started:6.0f} s  {step} {at}/{of}", file=sys.stderr, flush=True)

    return report


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of sets")
    parser.add_argument("--set", default="github_issue_triage")
    parser.add_argument("--rows", type=int, default=1000, help="earlier rows put into the log, the newest")
    parser.add_argument("--train-tokens", type=int, default=100_000, help="prompts and epochs included")
    parser.add_argument("--holdout", type=int, default=150)
    parser.add_argument("--test", type=int, default=150, help="later rows that are asked")
    parser.add_argument("--compressor", default="", help="path of a Python with stillroom[compress]")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
