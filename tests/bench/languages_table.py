"""Owns the tables of the languages' benchmark, computed from kept answers. Must not know models.

`one` of a comparison is the first column, `other` the second; the difference is other - one (`distiller.ab`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distiller.ab import Compared, compare
from tests.bench.distill_table import verdicts

JOINT, OWN, SKEWED, BALANCED, FERTILITY = "joint", "own", "skewed", "balanced", "fertility"
KEPT = 0.95  # of its teacher's score: what each language should keep
BEHIND = 0.02  # of the score: what a joint student may lie below one of its own

Answers = Mapping[str, Any]


def tables(found: Sequence[Answers], seed: int) -> str:
    """Markdown: for each kind of student the two comparisons, with what gave none; and the fertility."""
    kinds = list(dict.fromkeys(one["kind"] for one in found if one["part"] != FERTILITY))
    lines = [line for kind in kinds for line in _kind(kind, [one for one in found if one.get("kind") == kind], seed)]
    for one in found:
        if one["part"] == FERTILITY:
            lines += _fertility(one)
    return "\n".join([*lines, _NOTES.format(kept=KEPT)])


def _kind(kind: str, found: Sequence[Answers], seed: int) -> Iterator[str]:
    for one in found:
        if "why" in one:
            yield f"{kind}, {one['part']} ({one['set']}): none, {one['why']}\n"
    made = {one["part"]: one for one in found if "why" not in one and one["part"] != OWN}
    own = {_only(one): one for one in found if one["part"] == OWN and "why" not in one}
    if JOINT in made:
        yield from _together(kind, made[JOINT], own, seed)
    if SKEWED in made and BALANCED in made:
        yield from _balance(kind, made[SKEWED], made[BALANCED], seed)


def _together(kind: str, joint: Answers, own: Mapping[str, Answers], seed: int) -> Iterator[str]:
    """Each language's student beside the joint one, and what the student of one teacher is worth in all of them."""
    yield f"### {kind}: one student for all languages beside one of each\n"
    yield (
        "| language (learned, asked) | a student of its own | one of all | difference (95 %) | better / worse | p "
        "| student of a single teacher |"
    )
    yield "|---|--:|--:|---|--:|--:|--:|"
    single = next((one for one in own.values() if len({row["meta"]["lang"] for row in one["test"]}) > 1), None)
    pairs: list[tuple[list[float], list[float]]] = []
    reached = behind = 0
    for lang, one in sorted(own.items()):
        sides = _scores(one, lang), _scores(joint, lang)
        pairs.append(sides)
        said = compare(*sides, seed)
        reached += said.other >= KEPT
        behind += said.difference < -BEHIND
        alone = "-" if single is None else "(the same)" if one is single else f"{_mean(_scores(single, lang)):.3f}"
        yield f"| {lang} ({one['rows']}, {said.n}) | {_cells(said)} | {alone} |"
    if pairs:
        sides = [sum((pair[side] for pair in pairs), start=list[float]()) for side in (0, 1)]
        alone = "-" if single is None else f"{_mean([v for lang in own for v in _scores(single, lang)]):.3f}"
        yield f"| all ({joint['rows']}, {len(sides[0])}) | {_cells(compare(*sides, seed))} | {alone} |"
        yield (
            f"\n{reached} of {len(pairs)} languages keep {KEPT:.0%} of their teacher; {behind} are more than "
            f"{BEHIND * 100:g} points behind a student of their own. Minutes: {joint['seconds'] / 60:.1f} for the one, "
            f"{sum(one['seconds'] for one in own.values()) / 60:.1f} for the {len(own)}.\n"
        )


def _balance(kind: str, plain: Answers, even: Answers, seed: int) -> Iterator[str]:
    yield f"### {kind}: skewed traffic, as it is and balanced\n"
    yield "| language (learned) | share of the weight | as it is | balanced | difference (95 %) | better / worse | p |"
    yield "|---|--:|--:|--:|---|--:|--:|"
    weights = {one["name"]: one for one in even["languages"]["table"]}
    before = {one["name"]: one for one in plain["languages"]["table"]}
    for lang, one in weights.items():
        said = compare(_scores(plain, lang), _scores(even, lang), seed)
        yield f"| {lang} ({one['rows']}) | {before[lang]['weight']:.0%} -> {one['weight']:.0%} | {_cells(said)} |"
    both = [[value for lang in weights for value in _scores(one, lang)] for one in (plain, even)]
    yield f"| all ({even['rows']}) | | {_cells(compare(*both, seed))} |\n"


def _fertility(found: Answers) -> Iterator[str]:
    yield "### Fertility: tokens per byte of what users wrote / of answers\n"
    names = [name for name in found if name != "part"]
    yield f"| language | {' | '.join(names)} |"
    yield f"|---|{'--:|' * len(names)}"
    for lang in found[names[0]]:
        cells = [f"{found[name][lang]['user']:.3f} / {found[name][lang]['answer']:.3f}" for name in names]
        yield f"| {lang} | {' | '.join(cells)} |"


def _cells(said: Compared) -> str:
    return (
        f"{said.one:.3f} | {said.other:.3f} | {said.difference:+.3f} ({said.lower:+.3f}..{said.upper:+.3f}) "
        f"| {said.won} / {said.lost} | {said.p:.3f}"
    )


def _scores(answers: Answers, lang: str) -> list[float]:
    rows = [row for row in answers["test"] if row["meta"]["lang"] == lang]
    return [float(value) for value in verdicts(answers, rows, "teacher")]


def _only(answers: Answers) -> str:
    """The language of a student of one, by its name."""
    return str(answers["set"]).rpartition("-")[2]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


_NOTES = """
Scores are mean verdicts against the row's own teacher, on later rows. Differences: the second column less the first,
paired by row, with a bootstrap interval; better / worse count rows; p is exact (McNemar), or by sign flips. Each table
has several tests: a p of 0.05 among them is nothing. A student of a single teacher is that of the language with most
rows, asked in the others. {kept:.0%} of a teacher is a mean verdict of {kept:g} here: teachers agree with themselves.
tokens: of two tokenizers on one language the one with fewer needs fewer steps; between scripts, bytes differ."""
