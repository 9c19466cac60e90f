"""Owns the student that is an adapter of a language model: rendered, trained, and its holdout answered.

Must not know how good the answers are, nor how it is served.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distiller.answer_loss import answer_losses
from distiller.base import compute_dtype, resolve_base
from distiller.curate import Recorded
from distiller.dataset import Dataset
from distiller.examples import Encoded, encode, soften
from distiller.generate import generate
from distiller.projection import Projection, report
from distiller.recipes import Made, Report
from distiller.row_groups import groups
from distiller.row_weights import Weighted, weigh_rows
from distiller.settings import DistillerSettings, Settings
from distiller.token_bytes import TokenBytes
from distiller.train import TrainSettings, train
from distiller.warm_start import PREVIOUS, Start, start_of
from proxy.errors import Refused
from proxy.logprobs import unpacked
from router.prompt import student_messages

ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Taught:
    """What a training gets: the base, where it starts, the rows as token ids, oldest first, and why others are not."""

    base: Path
    start: Start
    rows: Sequence[tuple[Encoded, Recorded]]
    left_out: Counter[str]


def adapter_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Train an adapter into `folder`/adapter; Refused where no row fits into the limits."""
    taught = taught_rows(data, settings, on_progress)
    made = trained_adapter(taught, [row for row, _ in taught.rows], data, settings, folder, on_progress)
    return _with_losses(made, data, settings.distiller, folder, on_progress)


def soft_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """The same rows, steps and seed, learning from the teacher's log-probabilities too where they were recorded.

    Writes `projection_report.json`. Refused where none were recorded.
    """
    taught = taught_rows(data, settings, on_progress)
    if not any(source.logprobs for _, source in taught.rows):
        raise Refused("no log-probabilities of the teacher were recorded; teacher.logprobs_share asks for them")
    tokens = TokenBytes(AutoTokenizer.from_pretrained(taught.base).backend_tokenizer)
    softened: list[Encoded] = []
    projections: list[Projection | None] = []
    for row, source in taught.rows:
        known = unpacked(source.logprobs) if source.logprobs else ()
        soft, projection = soften(row, source.answer, known, tokens) if known else (row, None)
        softened.append(soft)
        projections.append(projection)
    (folder / "projection_report.json").write_text(json.dumps(asdict(report(projections)), indent=1))
    made = trained_adapter(taught, softened, data, settings, folder, on_progress)
    return _with_losses(made, data, settings.distiller, folder, on_progress)


def learned_adapter(data: Dataset, settings: Settings, out: Path, on_progress: Report) -> Made:
    """The same adapter in the folder `out`, which has answered nothing yet; `losses.json` is written beside it."""
    taught = taught_rows(data, settings, on_progress)
    return _learned(taught, [row for row, _ in taught.rows], data, settings.distiller, out, on_progress)


def trained_adapter(
    taught: Taught, encoded: Sequence[Encoded], data: Dataset, settings: Settings, folder: Path, on_progress: Report,
    aside: Sequence[Encoded] = (), steps: int = 0,
) -> Made:  # fmt: skip
    """Train on `encoded`, which is what is served, and on what is learned `aside`; then answer the holdout.

    In so many `steps`, or (0) as many as the settings' epochs take.
    """
    options, adapter = settings.distiller, folder / ADAPTER
    made = _learned(taught, encoded, data, options, adapter, on_progress, aside, steps)
    answers = generate(
        made.base, adapter, data.asked(data.holdout), made.limit, threads(options),
        lambda i, n: on_progress("holdout", i, n),
    )  # fmt: skip
    return replace(made, answers=answers)


def _learned(
    taught: Taught, encoded: Sequence[Encoded], data: Dataset, options: DistillerSettings, adapter: Path,
    on_progress: Report, aside: Sequence[Encoded] = (), steps: int = 0,
) -> Made:  # fmt: skip
    start = taught.start
    weighted = weigh_rows([row for _, row in taught.rows], data.evaluator, options)
    if weighted:
        encoded = [replace(row, weight=weight) for row, weight in zip(encoded, weighted.weights.tolist(), strict=True)]
    trained = train(
        taught.base, [*encoded, *aside], replace(train_settings(options), steps=steps), adapter,
        lambda i, n, _: on_progress("training", i, n), init=start.adapter,
    )  # fmt: skip
    (adapter.parent / "losses.json").write_text(json.dumps(trained.losses))
    facts = {key: value for key, value in asdict(trained).items() if key != "losses"} | {"dtype": compute_dtype()}
    facts |= _told(start, weighted) if options.init == PREVIOUS or weighted else {}
    return Made(taught.base, (), _answer_limit(encoded), len(encoded), facts, taught.left_out, start.parent)


def _with_losses(made: Made, data: Dataset, options: DistillerSettings, folder: Path, on_progress: Report) -> Made:
    """The holdout's losses too, where there are languages to tell apart by them."""
    if not groups([*data.train, *data.holdout]).several:
        return made
    losses = answer_losses(
        made.base, folder / ADAPTER, data.holdout, data.asked(data.holdout), options.max_tokens, threads(options),
        lambda i, n: on_progress("losses", i, n),
    )  # fmt: skip
    return replace(made, losses=losses)


def threads(options: DistillerSettings) -> int:
    """How many cores to use."""
    return options.threads or os.cpu_count() or 1


def taught_rows(data: Dataset, settings: Settings, on_progress: Report) -> Taught:
    """The newest rows that fit into the limits; from the base on all of them, where too few older ones would remain."""
    options = settings.distiller
    on_progress(f"base model {options.base}", 0, 1)
    base = resolve_base(options.base, settings.folder / "bases")
    start = start_of(data, base, options)
    rows, left_out = _rows(data, start.rows, base, options)
    replayed = sum(row.exchange_id in start.replayed for _, row in rows)
    if start.parent and replayed < options.replay_share * len(rows):
        why = f"{replayed} older rows of {len(rows)} fit into distiller.max_tokens and distiller.train_tokens"
        start = Start(data.train, why=f"{why}: too few to go on from {start.parent.id}")
        rows, left_out = _rows(data, start.rows, base, options)
    return Taught(base, start, rows, left_out)


def _told(start: Start, weighted: Weighted | None) -> dict[str, Any]:
    """What the manifest says of a training that did not simply start from the base with all rows alike."""
    parent = start.parent.id if start.parent else None
    found: dict[str, Any] = {"parent": parent, "replayed": len(start.replayed), "from_base_because": start.why}
    return found | ({"effective_rows": weighted.effective} if weighted else {})


def _rows(
    data: Dataset, wanted: Sequence[Recorded], base: Path, options: DistillerSettings
) -> tuple[list[tuple[Encoded, Recorded]], Counter[str]]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    budget = options.train_tokens // options.epochs if options.train_tokens else None
    encoded: list[tuple[Encoded, Recorded]] = []
    left_out: Counter[str] = Counter()
    spent = 0
    for row in reversed(wanted):
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
    return encoded[::-1], left_out


def train_settings(options: DistillerSettings) -> TrainSettings:
    """How an adapter is trained by these settings."""
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
