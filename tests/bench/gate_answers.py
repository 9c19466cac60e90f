"""Owns the answers of the gate's benchmark: students made by the project's own distiller, and what they say.

Every answer is kept as it was given, so that thresholds and tables are computed from it afterwards. Must not judge.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from distiller.base import resolve_base
from distiller.bundle import Bundle, load_bundle
from distiller.distill import distill
from distiller.generate import generate
from distiller.settings import DistillerSettings, Settings
from proxy.log import Log
from proxy.traffic_file import Row, read_traffic
from router.prompt import student_messages
from router.registry import candidates
from tests.logs import migrated
from tests.router.conftest import PATH, add_rows

OWN, SHUFFLED, FOREIGN = "own", "shuffled", "foreign"
_MOST = 2000  # rows of earlier traffic put into the log, the newest: more than any budget here trains on
_AT_ONCE = 250  # rows an INSERT
_FEWEST = 80  # rows however long the answers are: from fewer than 58 no margin of 0.05 can be shown

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """What one student may cost; `characters` of teacher's answers bound the rows of sets with long ones."""

    train_tokens: int
    epochs: int
    rank: int
    holdout: int
    rows: int
    characters: int
    seed: int
    threads: int


@dataclass(frozen=True, slots=True)
class Made:
    """A student and the rows it is to answer, earlier ones that nobody trained on and later ones."""

    name: str
    bundle: Bundle
    evaluator: str
    holdout: Sequence[Row]
    test: Sequence[Row]


class Workshop:
    """Makes students in a folder of its own, and lets them answer."""

    def __init__(self, folder: Path, budget: Budget, base: str, say: Say) -> None:
        """`base` as in `[distiller]`; `say` gets a line about every step."""
        self._folder, self._budget, self._name, self._say = folder, budget, base, say
        self._base = resolve_base(base, folder / "bases")

    def student(self, name: str, data: Path, shuffled: bool = False) -> Made:
        """Distill one from the set's earlier traffic; `shuffled` pairs each request with another one's answer."""
        earlier, later = (read_traffic(data / name / f"{part}.jsonl") for part in ("train", "test"))
        earlier = earlier[-_MOST:]
        if shuffled:
            earlier, later = (with_shuffled_answers(rows, self._budget.seed) for rows in (earlier, later))
        home = self._folder / f"{name}-{'shuffled' if shuffled else 'own'}"
        home.mkdir()
        log = migrated(home)
        try:
            fill(log, earlier, name)
            distill(log, self._settings(home, earlier), name, self._progress(name))
            (candidate,) = candidates(log)
        finally:
            log.close()
        bundle = load_bundle(Path(candidate.bundle))
        holdout = [earlier[int(line["exchange"])] for line in holdout_of(bundle)]
        return Made(name, bundle, candidate.evaluator, holdout, later[: self._rows(later, self._budget.rows)])

    def answers(self, made: Made, by: Made | None = None) -> dict[str, Any]:
        """What the student, or another one in its place (`by`), says to the rows; ready for JSON."""
        adapter = (by or made).bundle.path / "adapter"
        card = made.bundle.manifest["card"]
        # What the student said to its own holdout was already kept by the distiller.
        rows = [*(made.holdout if by else ()), *made.test]
        prompts = [student_messages(row.messages, frozenset(card["static"])) for row in rows]
        report = self._progress(f"{made.name}{f' by the student of {by.name}' if by else ''}")
        said = generate(
            self._base, adapter, prompts, card["max_tokens"], self._budget.threads, lambda i, n: report("answers", i, n)
        )
        fresh = [{"teacher": row.answer, **asdict(one)} for row, one in zip(rows, said, strict=True)]
        lines = fresh if by else [*holdout_of(made.bundle), *fresh]
        return {
            "set": made.name, "by": by.name if by else None, "evaluator": made.evaluator, "labels": card["labels"],
            "trained": made.bundle.manifest["trained"], "scores": made.bundle.manifest["holdout"],
            "holdout": lines[: len(made.holdout)], "test": lines[len(made.holdout) :],
        }  # fmt: skip

    def _settings(self, home: Path, earlier: Sequence[Row]) -> Settings:
        budget = self._budget
        options = DistillerSettings(
            students=("adapter",),
            base=self._name if Path(self._name).is_dir() else str(self._base),
            train_tokens=budget.train_tokens,
            epochs=budget.epochs,
            rank=budget.rank,
            holdout=self._rows(earlier, budget.holdout),
            control_rows=8,
            seed=budget.seed,
            threads=budget.threads,
        )
        return Settings(home=str(home), distiller=options)

    def _rows(self, rows: Sequence[Row], most: int) -> int:
        characters = sum(len(row.answer or "") for row in rows) / len(rows)
        return min(most, max(_FEWEST, int(self._budget.characters / max(characters, 1))))

    def _progress(self, name: str) -> Callable[[str, int, int], None]:
        last = [time.monotonic()]

        def report(step: str, at: int, of: int) -> None:
            if time.monotonic() - last[0] > 10 or at == of:
                last[0] = time.monotonic()
                self._say(f"{name}: {step} {at}/{of}")

        return report


def fill(log: Log, rows: Sequence[Row], task: str, langs: Sequence[str] = ()) -> None:
    """Put the rows into the log, as the teacher's answers; with `langs`, one a row, as those of its own teacher."""
    for start in range(0, len(rows), _AT_ONCE):
        some = recorded(rows[start : start + _AT_ONCE], task, start)
        if langs:
            some = [{**row, "lang": langs[at], "teacher": f"teacher-{langs[at]}"} for at, row in enumerate(some, start)]
        add_rows(log, "exchanges", some)


def holdout_of(bundle: Bundle) -> list[dict[str, Any]]:
    """What the distiller kept of a student's holdout."""
    return [json.loads(line) for line in (bundle.path / "holdout.jsonl").read_text(encoding="utf-8").splitlines()]


def with_shuffled_answers(rows: Sequence[Row], seed: int) -> list[Row]:
    """The same requests and the same answers, paired at random."""
    answers = [row.answer for row in rows]
    random.Random(seed).shuffle(answers)
    return [
        Row(row.messages, answer, row.tool_calls, row.model, row.tools)
        for row, answer in zip(rows, answers, strict=True)
    ]


def recorded(rows: Sequence[Row], task: str, first: int) -> list[dict[str, Any]]:
    """Rows of the log's table of exchanges; the id is the row's number, the time follows it."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        {
            "id": f"{number:026}", "ts": start + timedelta(seconds=number), "task": task, "model": row.model,
            "path": PATH, "method": "POST", "served_by": "teacher", "status": 200, "partial": False,
            "finish_reason": "stop", "answer": row.answer, "request_encoding": "utf-8",
            "request": json.dumps({"model": row.model, "messages": row.messages}),
        }
        for number, row in enumerate(rows, first)
    ]  # fmt: skip
