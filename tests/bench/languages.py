"""One student for all languages, each taught by a teacher of its own, beside a student for each language.

    OMP_WAIT_POLICY=PASSIVE python -m tests.bench.languages --data FOLDER       (make bench-languages DATA=FOLDER)

FOLDER holds a set whose rows say their language in `meta.lang`; each language plays a teacher of its own. Prints
Markdown. What is compared, on later rows that nobody learned from:

* many teachers: one student of all languages ("joint") beside one of each language alone ("own"), of the same rows of
  that language. A student of n rows of all N reads n / N of the tokens, so that the eight cost what the one costs.
* a single teacher: the student of the language with most rows, asked in all the others. That is what a student of one
  teacher is worth where the rest is not taught. One teacher for all languages is not tried: the answers here are given,
  so it would be the same rows.
* balance: of traffic in which each language is rarer than the one before, a joint student by the rows as they are, and
  one with `distiller.language_temperature`.

Differences are paired by row: `distiller.ab`. A language without later rows has its last rows of the earlier ones
kept out for that.

    --quick          small encoders only, with few tokens: about 10 minutes on two idle cores
    --kinds A,B      kinds of students (default: encoder,adapter; with --quick: encoder)
    --keep FILE      write every answer, one student a line
    --answers FILE   no training: the tables again from what --keep wrote
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distiller.dataset import newest
from distiller.embedding import resolve_encoder
from distiller.fertility import by_group
from distiller.settings import DistillerSettings
from tests.bench.distill_answers import Limits, Line, base_once, read_set, student
from tests.bench.gate_answers import fill
from tests.bench.kept import add_source, keeping, read
from tests.bench.languages_table import BALANCED, FERTILITY, JOINT, OWN, SKEWED, tables
from tests.logs import migrated

TEMPERATURE = 3.0
LATE = 60  # rows of a language that has no later ones
RARER = 0.75  # how many rows a language has in skewed traffic, beside the one before

Answers = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One student to make: its part in the comparison, what it is called, what it learns from and is asked."""

    part: str
    name: str
    earlier: Sequence[Line]
    later: Sequence[Line]
    temperature: float = 1.0


def main() -> int:
    """Run and print."""
    arguments = _arguments()
    if arguments.answers:
        found = read(arguments.answers)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            found = list(map(keeping(arguments.keep), _made(arguments, Path(scratch))))
    print(tables(found, arguments.seed))
    return 0


def parts(name: str, earlier: Sequence[Line], later: Sequence[Line]) -> Iterator[Part]:
    """All students of one kind; the own one of the language with most rows is asked everything."""
    earlier, later = with_late(earlier, later)
    counts = Counter(map(language, earlier))
    most = max(sorted(counts), key=counts.__getitem__)
    yield Part(JOINT, name, earlier, later)
    for lang in sorted(counts):
        asked = later if lang == most else [line for line in later if language(line) == lang]
        yield Part(OWN, f"{name}-{lang}", [line for line in earlier if language(line) == lang], asked)
    fewer = skewed(earlier)
    yield Part(SKEWED, f"{name}, skewed", fewer, later)
    yield Part(BALANCED, f"{name}, skewed", fewer, later, TEMPERATURE)


def with_late(earlier: Sequence[Line], later: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """The last LATE rows of a language that has no later ones are its later ones."""
    missing = set(map(language, earlier)) - set(map(language, later))
    moved = {
        place
        for lang in missing
        for place in [place for place, line in enumerate(earlier) if language(line) == lang][-LATE:]
    }
    stays = [line for place, line in enumerate(earlier) if place not in moved]
    return stays, [*(earlier[place] for place in sorted(moved)), *later]


def skewed(lines: Sequence[Line]) -> list[Line]:
    """Of each language the first rows, RARER times as many as of the one before, in order of the languages' names."""
    counts = Counter(map(language, lines))
    left = {lang: round(min(counts.values()) * RARER**place) for place, lang in enumerate(sorted(counts))}
    kept = []
    for line in lines:
        if left[language(line)]:
            left[language(line)] -= 1
            kept.append(line)
    return kept


def language(line: Line) -> str:
    """What the row says."""
    return str(line.meta["lang"])


def budget(limits: Limits, rows: int, of: int) -> Limits:
    """What a student of so many of all rows may cost: its share, and as many epochs as any other."""
    options, share = limits.options, rows / of
    tokens = {"encoder_tokens": round(options.encoder_tokens * share)}
    if options.train_tokens:
        tokens["train_tokens"] = round(options.train_tokens * share)
    return replace(limits, options=replace(options, **tokens))


def made(part: Part, kind: str, limits: Limits, of: int, folder: Path, say: Callable[[str], None]) -> Answers:
    """The student and its answers; `why` where there is none."""
    own = budget(limits, len(part.earlier), of)
    own = replace(own, options=replace(own.options, language_temperature=part.temperature))
    found = student(part.name, kind, part.earlier, part.later, own, folder, say)
    return {"part": part.part, "asked": len(part.later), **found}


def fertilities(lines: Sequence[Line], limits: Limits, folder: Path) -> Answers:
    """By language, tokens per byte of what users wrote and of answers, as the base model and the encoder spell them."""
    home = folder / FERTILITY
    home.mkdir()
    log = migrated(home)
    fill(log, [line.row for line in lines], "all", [language(line) for line in lines])
    rows = newest(log, "all", len(lines))[1]
    log.close()
    models = {
        "base": Path(limits.options.base), "encoder": resolve_encoder(limits.options.encoder, folder / "bases"),
    }  # fmt: skip
    return {
        name: {lang: asdict(one) for lang, one in by_group(AutoTokenizer.from_pretrained(place), rows).items()}
        for name, place in models.items()
    }


def _made(arguments: argparse.Namespace, folder: Path) -> Iterator[Answers]:
    started, limits = time.monotonic(), _limits(arguments, folder)

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    earlier, later = read_set(arguments.data / arguments.set)
    yield {"part": FERTILITY, **fertilities(earlier, limits, folder)}
    for kind in (arguments.kinds or ("encoder" if arguments.quick else "encoder,adapter")).split(","):
        for part in parts(arguments.set, earlier, later):
            yield made(part, kind, limits, len(earlier), folder, say)


def _limits(arguments: argparse.Namespace, folder: Path) -> Limits:
    options = DistillerSettings(
        min_exchanges=20, max_rows=4000, holdout=200, seed=arguments.seed, threads=2, control_rows=4, epochs=4,
        train_tokens=600_000, encoder_tokens=2_000_000,
    )  # fmt: skip
    if arguments.quick:
        options = replace(options, train_tokens=100_000, encoder_tokens=300_000, epochs=2, rank=8)
    return Limits(base_once(options, folder), test=1000, characters=1_000_000, fewest=80)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_source(parser)
    parser.add_argument("--set", default="nlu_multilingual_json")
    parser.add_argument("--kinds", default="", help="names with commas between them")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
