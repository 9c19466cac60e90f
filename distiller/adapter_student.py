"""Owns the student that is an adapter of a language model: rendered, trained, and its holdout answered.

Must not know how good the answers are, nor how it is served.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from transformers import AutoTokenizer

from distiller.base import compute_dtype, resolve_base
from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.examples import Encoded, encode, soften
from distiller.generate import generate
from distiller.projection import Projection, report
from distiller.recipes import Made, Report
from distiller.settings import DistillerSettings, Settings
from distiller.token_bytes import TokenBytes
from distiller.train import TrainSettings, train
from proxy.errors import Refused
from proxy.logprobs import unpacked
from router.prompt import student_messages

ADAPTER = "adapter"


def adapter_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Train an adapter into `folder`/adapter; Refused where no row fits into the limits."""
    base, rows, left_out = _rows(data, settings, on_progress)
    return _trained(base, [row for row, _ in rows], left_out, data, settings, folder, on_progress)


def soft_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """The same rows, steps and seed, learning from the teacher's log-probabilities too where they were recorded.

    Writes `projection_report.json`. Refused where none were recorded.
    """
    base, rows, left_out = _rows(data, settings, on_progress)
    if not any(source.logprobs for _, source in rows):
        raise Refused("no log-probabilities of the teacher were recorded; teacher.logprobs_share asks for them")
    tokens = TokenBytes(AutoTokenizer.from_pretrained(base).backend_tokenizer)
    softened: list[Encoded] = []
    projections: list[Projection | None] = []
    for row, source in rows:
        known = unpacked(source.logprobs) if source.logprobs else ()
        soft, projection = soften(row, source.answer, known, tokens) if known else (row, None)
        softened.append(soft)
        projections.append(projection)
    (folder / "projection_report.json").write_text(json.dumps(asdict(report(projections)), indent=1))
    return _trained(base, softened, left_out, data, settings, folder, on_progress)


def taught(data: Dataset, settings: Settings, out: Path, on_progress: Report) -> Made:
    """The same adapter in the folder `out`, which has answered nothing yet; `losses.json` is written beside it."""
    base, rows, left_out = _rows(data, settings, on_progress)
    return _taught(base, [row for row, _ in rows], left_out, settings.distiller, out, on_progress)


def _trained(
    base: Path, encoded: Sequence[Encoded], left_out: Counter[str], data: Dataset, settings: Settings, folder: Path,
    on_progress: Report,
) -> Made:  # fmt: skip
    options, adapter = settings.distiller, folder / ADAPTER
    made = _taught(base, encoded, left_out, options, adapter, on_progress)
    answers = generate(
        base, adapter, data.asked(data.holdout), made.limit, threads(options), lambda i, n: on_progress("holdout", i, n)
    )
    return replace(made, answers=answers)


def _taught(
    base: Path, encoded: Sequence[Encoded], left_out: Counter[str], options: DistillerSettings, adapter: Path,
    on_progress: Report,
) -> Made:  # fmt: skip
    trained = train(base, encoded, _train_settings(options), adapter, lambda i, n, _: on_progress("training", i, n))
    (adapter.parent / "losses.json").write_text(json.dumps(trained.losses))
    facts = {key: value for key, value in asdict(trained).items() if key != "losses"} | {"dtype": compute_dtype()}
    return Made(base, (), _answer_limit(encoded), len(encoded), facts, left_out)


def threads(options: DistillerSettings) -> int:
    """How many cores to use."""
    return options.threads or os.cpu_count() or 1


def _rows(
    data: Dataset, settings: Settings, on_progress: Report
) -> tuple[Path, list[tuple[Encoded, Recorded]], Counter[str]]:
    """The base model, the newest rows that fit into the limits as token ids, oldest first, and why others do not."""
    options = settings.distiller
    on_progress(f"base model {options.base}", 0, 1)
    base = resolve_base(options.base, settings.folder / "bases")
    tokenizer = AutoTokenizer.from_pretrained(base)
    budget = options.train_tokens // options.epochs if options.train_tokens else None
    encoded: list[tuple[Encoded, Recorded]] = []
    left_out: Counter[str] = Counter()
    spent = 0
    for row in reversed(data.train):
        one = encode(tokenizer, student_messages(row.messages, data.static), row.answer)
        length = len(one.input_ids)
        if length > options.max_tokens:
            left_out["too_long"] += 1
        elif budget is not None and spent + length > budget:
            left_out["over_budget"] += 1
        else:
            spent += length
            encoded.append((one, row))
    if not encoded:
        raise Refused(
            f"no row fits into distiller.max_tokens = {options.max_tokens} and distiller.train_tokens: raise them"
        )
    return base, encoded[::-1], left_out


def _train_settings(options: DistillerSettings) -> TrainSettings:
    return TrainSettings(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        rank=options.rank,
        alpha=2 * options.rank,
        tokens_per_step=max(512, options.max_tokens),
        max_tokens=options.max_tokens,
        seed=options.seed,
        threads=threads(options),
        layers=options.layers or None,
        alpha_hard=options.alpha_hard,
    )


def _answer_limit(encoded: Sequence[Encoded]) -> int:
    """Tokens a student may answer with: what the longest taught answer needs, and half as much again."""
    longest = max(len(row.input_ids) - row.prompt_length for row in encoded)
    return longest + longest // 2 + 2
