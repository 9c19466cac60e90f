"""Owns how a forecast is read in the terminal. Must not compute a figure of its own."""

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distiller.base_facts import BaseFacts
from distiller.fertility import Lengths
from distiller.forecast import Data, Forecast, Money
from distiller.payback import Figure
from distiller.terminal import money

Line = tuple[str, str, str]
"""(what, how much, what it rests on)"""


def forecast_table(found: Forecast) -> None:
    """`stillroom forecast`: the conclusion first, then every figure with what it rests on."""
    console = Console()
    said = f"{found.task}: {found.conclusion.word}: {found.conclusion.why}"
    console.print(said, soft_wrap=True, highlight=False, markup=False)
    table = Table("figure", "value", "rests on", title="Forecast")
    for line in _lines(found):
        table.add_row(*map(Text, line))  # What was recorded may look like markup.
    console.print(table)


def _lines(found: Forecast) -> Iterator[Line]:
    yield from _data(found.data)
    yield "expected agreement", _share(found.agreement), found.agreement.basis
    for path, figure in found.parts.items():
        yield f"  of {path}", _share(figure), figure.basis
    yield "expected coverage", _share(found.coverage), found.coverage.basis
    yield "exchanges to a proof", _figure(found.proof, "{:,.0f}".format), found.proof.basis
    yield "more rows", "", found.curve
    yield from _base(found.base)
    yield from _money(found.money)


def _data(data: Data) -> Iterator[Line]:
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items()) or "none"
    yield "fit to learn from", f"{data.fit:,} of {data.read:,}", f"snapshot {data.snapshot}; dropped: {dropped}"
    yield "learned, judged", f"{data.train:,}, {data.holdout:,}", "the earlier ones, and the latest fifth"
    yield "answers are", data.evaluator or "unknown", data.evaluator_basis
    if data.labels:
        one = data.labels
        told = f"{one.largest!r} {one.largest_share:.0%}, evenness {one.evenness:.2f}, {one.rare} labels are rare"
        yield "labels", f"{one.labels}", told
    repeats = data.repeats
    told = "the same prompt with the same answer, with another answer, and near-duplicates of the rows that are left"
    yield "repeats", f"{repeats.exact:.1%}, {repeats.conflicting:.1%}, {repeats.near:.1%}", told
    languages = ", ".join(f"{name} {share:.0%}" for name, share in data.languages.items()) or "none"
    yield "languages", languages, "a light guess from the users' texts"


def _base(base: BaseFacts) -> Iterator[Line]:
    if base.tokens:
        one = base.tokens
        kept = f"{one.rows} rows; {one.too_long} too long, {one.unreadable} unreadable"
        yield "prompt tokens", _lengths(one.prompt), f"of {base.base}, as a student reads them: {kept}"
        yield "answer tokens", _lengths(one.answer), "median, 95th percentile, most"
    if base.fertility:
        one_of = base.fertility
        told = f"tokens a byte, the teacher's: {one_of.source}, {one_of.rows} rows"
        yield "prompt fertility", f"{one_of.base_prompt:.3f} (teacher {one_of.teacher_prompt:.3f})", told
        yield "answer fertility", f"{one_of.base_answer:.3f} (teacher {one_of.teacher_answer:.3f})", told
    elif not base.why:
        yield "fertility", "unknown", "nobody counted the teacher's tokens"
    for name, spelled in base.languages.items():
        told = f"tokens a byte of what users wrote, and of answers; {spelled.rows} rows"
        yield f"fertility, {name}", f"{spelled.user:.3f}, {spelled.answer:.3f}", told
    if base.memory:
        memory = base.memory
        told = (
            f"weights {memory.weights:.2f} ({memory.parameters / 1e6:,.0f}M, {memory.width} bytes each) + cache "
            f"{memory.cache:.2f} for {memory.sequences} sequences of {memory.tokens:,} tokens; the engine's own on top"
        )
        yield "engine memory", f"{memory.total:.2f} GiB", told
    if base.why:
        yield "base model", "unknown", base.why


def _money(said: Money) -> Iterator[Line]:
    yield "teacher, an exchange", money(said.teacher_usd.value), said.teacher_usd.basis
    yield "exchanges a day", _figure(said.per_day, "{:,.1f}".format), said.per_day.basis
    yield "a training", _figure(said.training_usd, money), said.training_usd.basis
    yield "break-even, a day", _figure(said.break_even, "{:,.1f}".format), said.break_even.basis
    yield "weeks to payback", _figure(said.weeks, "{:,.1f}".format), said.weeks.basis


def _share(figure: Figure) -> str:
    return _figure(figure, "{:.1%}".format)


def _figure(figure: Figure, form: Callable[[float], str]) -> str:
    """The value with its interval; an end that is never reached is said."""
    if figure.value is None:
        return "never" if figure.never else "unknown"
    if figure.low is None and figure.high is None:
        return form(figure.value)
    low, high = (None if end is None else form(end) for end in (figure.low, figure.high))
    return f"{form(figure.value)} ({low or 'never'} to {high or 'never'})"


def _lengths(one: Lengths) -> str:
    return f"{one.median:,} / {one.most_of:,} / {one.most:,}"
