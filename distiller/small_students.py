"""Owns the right-sized students: a linear head on a fixed encoder, and a small encoder that is fine-tuned whole.

Neither writes: they choose, and copy out of the request. Must not know how good the answers are, nor who serves them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from distiller.adapter_student import threads
from distiller.dataset import Dataset
from distiller.embedding import Encoders, resolve_encoder
from distiller.encoder import EncoderSettings, train_encoder
from distiller.engines import SMALL
from distiller.head import train_head
from distiller.predict import Prompt
from distiller.recipes import Made, Report
from distiller.row_weights import weigh_rows
from distiller.settings import Settings
from distiller.small import load_small
from proxy.errors import Refused

_LIMIT = 4096  # tokens; an answer is as long as it is chosen to be

Rows = Sequence[tuple[Prompt, str]]


def head_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Fit a linear head into `folder`/small; Refused for tasks whose answers are no labels."""
    if data.evaluator != "label":
        raise Refused(f"a linear head answers with labels; this task is scored as {data.evaluator}")

    weighted = weigh_rows(data.train, data.evaluator, settings.distiller)

    def train(encoder: Path, rows: Rows, out: Path) -> tuple[int, dict[str, object], dict[str, int]]:
        facts = train_head(
            encoder, rows, out, settings.distiller.seed, threads(settings.distiller),
            lambda i, n: on_progress("linear head", i, n), weights=weighted.weights if weighted else None,
        )  # fmt: skip
        return facts.rows, asdict(facts), {}

    return _student(data, settings, folder, train)


def encoder_student(data: Dataset, settings: Settings, folder: Path, on_progress: Report) -> Made:
    """Fine-tune an encoder into `folder`/small; Refused for tasks whose answers have no fixed form."""
    given = settings.distiller
    options = EncoderSettings(train_tokens=given.encoder_tokens, seed=given.seed, threads=threads(given))
    weighted = weigh_rows(data.train, data.evaluator, given)
    weights = weighted.weights.tolist() if weighted else None

    def train(encoder: Path, rows: Rows, out: Path) -> tuple[int, dict[str, object], dict[str, int]]:
        facts = train_encoder(encoder, rows, out, options, lambda i, n, _: on_progress("encoder", i, n), weights)
        return facts.rows, asdict(facts), dict(facts.dropped)

    return _student(data, settings, folder, train)


def _student(
    data: Dataset,
    settings: Settings,
    folder: Path,
    train: Callable[[Path, Rows, Path], tuple[int, dict[str, object], dict[str, int]]],
) -> Made:
    encoder = resolve_encoder(settings.distiller.encoder, settings.folder / "bases")
    rows: Rows = [(prompt, row.answer) for prompt, row in zip(data.asked(data.train), data.train, strict=True)]
    learned, facts, left_out = train(encoder, rows, folder / SMALL)
    answers = load_small(folder / SMALL, Encoders([encoder]))(data.asked(data.holdout))
    return Made(encoder, answers, _LIMIT, learned, facts, left_out)
