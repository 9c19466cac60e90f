"""Owns the students of the soft labels' benchmark: distilled by the distiller itself, and measured on later exchanges.

Must not know how the exchanges came into the log, nor compare students.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from distiller.adapter_student import threads
from distiller.command_tools import opened_log
from distiller.completion_trainer import collate
from distiller.curate import Recorded
from distiller.dataset import newest
from distiller.distill import Distilled, distill
from distiller.examples import Encoded, encode, pack, soften
from distiller.generate import generate
from distiller.losses import coarse_divergence, pad_soft
from distiller.settings import Settings
from distiller.token_bytes import TokenBytes
from distiller.weights import load_for_training
from proxy.logprobs import unpacked
from proxy.traffic_file import Row, message_text
from router.evaluators import choose_evaluator, evaluator
from router.prompt import student_messages
from router.said import Said
from tests.bench.soft_teacher import LATER, Say

_AT_ONCE = 2048  # tokens that are read together
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Held:
    """One later exchange, read as the teacher answered it.

    `divergence` is the mean over its soft positions of the coarse KL (nats) from teacher to student, None without any.
    `sure` is the probability of the student's likeliest first token, `right` whether the teacher wrote that one, and
    `odds` the probability it gave it, None where the first position is not soft.
    """

    divergence: float | None
    sure: float
    right: bool
    odds: float | None


@dataclass(frozen=True, slots=True)
class Student:
    """One student; `verdicts` in [0, 1] against the teacher and `sure`, its confidences, one a later exchange.

    `exchanges` are those it learned from, `untuned` and `holdout` scores of the holdout, `report` the projection's.
    """

    base: str
    kind: str
    seconds: float
    tokens_per_second: float
    steps: int
    exchanges: tuple[str, ...]
    holdout: float
    untuned: float | None
    majority: float
    verdicts: tuple[float, ...]
    sure: tuple[float, ...]
    held: tuple[Held, ...]
    report: Mapping[str, Any] | None


def student(name: str, base: Path, kind: str, settings: Settings, task: str, say: Say) -> Student:
    """Distill a student of this kind from `base`, and have it read and answer the later exchanges."""
    options = replace(settings.distiller, students=(kind,), base=str(base))
    settings = replace(settings, distiller=options)
    log, started = opened_log(settings), time.monotonic()
    try:
        done = distill(log, settings, task, lambda *_: None)
        seconds = time.monotonic() - started
    finally:
        log.close()
    later = answered(settings)
    said = _answers(done, base, later, settings)
    score = evaluator(done.evaluator)
    verdicts = [
        score(row.request, Said(row.answer), Said(one.text)) if one.finished else 0.0
        for row, one in zip(later, said, strict=True)
    ]
    folder = done.bundle.path
    made = Student(
        base=name,
        kind=kind,
        seconds=seconds,
        tokens_per_second=done.trained["tokens_per_second"],
        steps=done.trained["steps"],
        exchanges=tuple(json.loads((folder / "lineage.json").read_text())["exchanges"]),
        holdout=done.holdout.student,
        untuned=done.holdout.base,
        majority=done.holdout.majority,
        verdicts=tuple(verdicts),
        sure=tuple(one.confidence for one in said),
        held=tuple(held_out(base, folder / "adapter", softened(base, later, _static(done)))),
        report=_report(folder / "projection_report.json"),
    )
    agreement = sum(verdicts) / len(verdicts)
    say(f"{name}, {kind}: {done.trained_rows} rows in {seconds:.0f} s, agreement {agreement:.3f} on {len(later)}")
    return made


def answered(settings: Settings) -> list[Recorded]:
    """The later exchanges that the teacher answered."""
    log = opened_log(settings)
    try:
        return [row for row in newest(log, LATER, _MOST)[1] if row.status == 200]
    finally:
        log.close()


def teachers_agreement(settings: Settings, rows: Sequence[Row]) -> float:
    """Mean verdict of the teacher's answers to the later rows against the recorded ones."""
    recorded = {message_text(row.messages[-1]): row.answer for row in rows}
    score = evaluator(choose_evaluator([Said(row.answer) for row in rows]))
    later = answered(settings)
    wanted = [recorded[message_text(row.messages[-1])] for row in later]
    verdicts = [score(row.request, Said(one), Said(row.answer)) for row, one in zip(later, wanted, strict=True)]
    return sum(verdicts) / len(verdicts)


def softened(base: Path, rows: Sequence[Recorded], static: frozenset[str]) -> list[Encoded]:
    """The rows as a student of `base` reads them, with what the teacher's log-probabilities tell of its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = TokenBytes(tokenizer.backend_tokenizer)
    encoded = [encode(tokenizer, student_messages(row.messages, static), row.answer) for row in rows]
    return [
        soften(one, row.answer, unpacked(row.logprobs), tokens)[0] if row.logprobs else one
        for one, row in zip(encoded, rows, strict=True)
    ]


@torch.no_grad()
def held_out(base: Path, adapter: Path, rows: Sequence[Encoded]) -> list[Held]:
    """What the student makes of each row, in their order."""
    model = PeftModel.from_pretrained(load_for_training(base), adapter).eval()
    found: dict[int, Held] = {}
    for group in pack([len(row.input_ids) for row in rows], max(_AT_ONCE, *(len(row.input_ids) for row in rows))):
        packed = [rows[index] for index in group]
        seen = {name: value for name, value in collate(packed).items() if name not in ("targets", "soft")}
        logits = model(**seen, use_cache=False).logits[0].float()
        for index, row, own in zip(group, packed, _apart(logits, packed), strict=True):
            found[index] = _held(own, row)
    return [found[index] for index in range(len(rows))]


def _apart(logits: torch.Tensor, rows: Sequence[Encoded]) -> Iterator[torch.Tensor]:
    yield from logits.split([len(row.input_ids) - row.prompt_length for row in rows])


def _held(logits: torch.Tensor, row: Encoded) -> Held:
    """From the logits (tokens of the answer, vocabulary) of one row."""
    targets = row.soft or ()
    divergence = None
    if any(targets):
        soft = pad_soft(targets)
        divergence = float(coarse_divergence(logits[soft["at"]], soft).mean())
    best = logits[0].softmax(-1).max(-1)
    token, first = int(best.indices), targets[0] if targets else None
    odds = None if first is None else dict(zip(first.ids, first.probabilities, strict=True)).get(token, 0.0)
    return Held(divergence, float(best.values), token == row.input_ids[row.prompt_length], odds)


def _answers(done: Distilled, base: Path, later: Sequence[Recorded], settings: Settings) -> list[Any]:
    prompts = [student_messages(row.messages, _static(done)) for row in later]
    limit = done.bundle.manifest["card"]["max_tokens"]
    return list(
        generate(base, done.bundle.path / "adapter", prompts, limit, threads(settings.distiller), lambda *_: None)
    )


def _static(done: Distilled) -> frozenset[str]:
    return frozenset(done.bundle.manifest["card"]["static"])


def _report(path: Path) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found
