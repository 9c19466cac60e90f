"""Owns the answers of the distiller's benchmark: students of every kind, by the project's own distiller.

Must not judge.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distiller.base import resolve_base
from distiller.distill import distill
from distiller.embedding import Encoders
from distiller.engines import SMALL
from distiller.generate import Generated, generate
from distiller.settings import DistillerSettings, Settings
from distiller.small import load_small
from distiller.tries import KINDS
from proxy.errors import Refused, StillroomError
from proxy.traffic_file import Row, parse_row
from router.prompt import student_messages
from tests.bench.gate_answers import fill, holdout_of
from tests.logs import migrated

Say = Callable[[str], None]

_CALLED = 0.5  # A set with more calls of tools than this is not for students; what texts it has are its exceptions.


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a set: the exchange, the right answer where it is known, and what else is said of it."""

    row: Row
    gold: str | None
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one student may cost.

    A language model answers at most `test` later rows; `characters` bound them and its holdout where answers are long,
    but `fewest` rows are asked however long their answers are.
    """

    options: DistillerSettings
    test: int
    characters: int
    fewest: int


def read_set(folder: Path) -> tuple[list[Line], list[Line]]:
    """Earlier and later rows of a set."""
    return _lines(folder / "train.jsonl"), _lines(folder / "test.jsonl")


def student(
    name: str, kind: str, earlier: Sequence[Line], later: Sequence[Line], limits: Limits, folder: Path, say: Say
) -> dict[str, Any]:
    """Distill a student of this kind from the earlier rows and have it answer the later; `why` where there is none."""
    home = folder / f"{name}-{kind}-{len(list(folder.iterdir()))}"
    home.mkdir()
    options = replace(limits.options, students=(kind,))
    if any(one.of_base for one in KINDS if one.name == kind):
        options = replace(options, holdout=_few(earlier, options.holdout, limits))
    settings = Settings(home=str(home), distiller=options)
    log = migrated(home)
    started = time.monotonic()
    try:
        _require_texts(earlier)
        langs = [str(line.meta["lang"]) for line in earlier if "lang" in line.meta]
        fill(log, [line.row for line in earlier], name, langs if len(langs) == len(earlier) else ())
        done = distill(log, settings, name, lambda *_: None)
    except StillroomError as error:
        say(f"{name}, {kind}: {error}")
        return {"set": name, "kind": kind, "why": str(error)}
    finally:
        log.close()
    trained = time.monotonic() - started
    card = done.bundle.manifest["card"]
    asked = later[: _few(later, limits.test, limits)] if done.holdout.base_rows else later
    said = _answers(done.bundle.path, card, asked, options.threads or 2)
    say(f"{name}, {kind}: {done.trained_rows} rows in {trained:.0f} s, {len(asked)} answers")
    return {
        "set": name, "kind": kind, "evaluator": done.evaluator, "labels": card["labels"], "rows": done.trained_rows,
        "seconds": trained, "answer_seconds": time.monotonic() - started - trained, "trained": dict(done.trained),
        "scores": asdict(done.holdout), "languages": asdict(done.languages), "holdout": holdout_of(done.bundle),
        "test": [_line(line, one) for line, one in zip(asked, said, strict=True)],
    }  # fmt: skip


def _require_texts(lines: Sequence[Line]) -> None:
    called = sum(line.row.answer is None for line in lines) / len(lines)
    if called > _CALLED:
        raise Refused(f"{called:.0%} of the answers are tool calls: students learn texts")


def _answers(bundle: Path, card: Mapping[str, Any], lines: Iterable[Line], threads: int) -> list[Generated]:
    prompts = [student_messages(line.row.messages, frozenset(card["static"])) for line in lines]
    base = Path(card["base"])
    if card["engine"] == SMALL:
        return load_small(bundle / SMALL, Encoders([base, *map(Path, card["reads"])]))(prompts)
    return generate(base, bundle / "adapter", prompts, card["max_tokens"], threads, lambda *_: None)


def _line(line: Line, said: Generated) -> dict[str, Any]:
    return {"teacher": line.row.answer, "gold": line.gold, "meta": dict(line.meta), **asdict(said)}


def _few(lines: Sequence[Line], most: int, limits: Limits) -> int:
    characters = sum(len(line.row.answer or "") for line in lines) / len(lines)
    return min(most, max(limits.fewest, int(limits.characters / max(characters, 1))))


def _lines(path: Path) -> list[Line]:
    lines = path.read_bytes().splitlines()
    return [Line(parse_row(line), (raw := json.loads(line)).get("gold"), raw.get("meta") or {}) for line in lines]


def base_once(options: DistillerSettings, folder: Path) -> DistillerSettings:
    """With the base model unpacked once, for all students."""
    return replace(options, base=str(resolve_base(options.base, folder / "bases")))
