"""Owns the ledger of a period as people read it: figures in words, in tables that every format shows alike.

Must not compute a figure of its own, nor know a format. What is unknown is said, never shown as zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from distiller.terminal import money
from proxy.log import Log
from proxy.rollups import query
from router.books import read_books
from router.breaking_even import Student, breaking_even
from router.ledger import Report, reckoned, rivals
from router.registry import candidates
from router.series import Day, Forecast, days_of, forecast

NONE_PASSED = "none passed"
_TRAINED = "SELECT model, sum(usd) FROM days WHERE kind = 'training' AND model IS NOT NULL GROUP BY model"


@dataclass(frozen=True, slots=True)
class Statement:
    """A period's ledger, its days, its students, and what the month of `now` comes to."""

    report: Report
    days: tuple[Day, ...]
    students: tuple[Student, ...]
    forecast: Forecast
    made: datetime

    @property
    def period(self) -> str:
        """In words; the last day is within."""
        since = "the beginning" if self.report.since is None else str(self.report.since)
        until = "today" if self.report.until is None else str(self.report.until - timedelta(days=1))
        return f"{since} to {until} (UTC)"


@dataclass(frozen=True, slots=True)
class Section:
    """A table: the first column names the row, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def statement(log: Log, since: date | None, until: date | None, floor: float, now: datetime) -> Statement:
    """From the day `since` to the day before `until`; the forecast goes by what the log has at `now` (UTC)."""
    books, known = read_books(log, since, until), rivals(log, floor)
    newest = read_books(log, now.date() - timedelta(days=62))
    trained: dict[str, Decimal] = dict(query(log, _TRAINED, {}))
    return Statement(
        reckoned(books, known), days_of(books, known), breaking_even(books, candidates(log), trained),
        forecast(days_of(newest, known), now), now,
    )  # fmt: skip


def as_data(one: Statement) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    data = {
        **asdict(one.report), "days": [asdict(day) for day in one.days], "forecast": asdict(one.forecast),
        "students": [asdict(student) for student in one.students], "made": one.made,
    }  # fmt: skip
    found: dict[str, Any] = _dated(data)
    return found


def sections(one: Statement) -> tuple[Section, ...]:
    """All tables, in the order in which they are read."""
    return (_summary(one), _forecast(one.forecast), _tasks(one), _charges(one), _students(one), _days(one))


def _summary(one: Statement) -> Section:
    r = one.report
    hours = f"{r.serving_hours:,.2f} h: {r.busy_hours:,.2f} busy, {r.idle_hours:,.2f} idle"
    passed = any(line.rival for line in r.tasks)
    rival = ("avoided", r.rival_avoided_usd), ("net saving", r.rival_net_usd)
    rows = [
        ("spent on the teacher", money(r.teacher_usd)),
        ("charges without a price, in no sum", f"{r.unpriced:,}"),
        ("avoided (estimate)", money(r.avoided_usd)),
        (f"- serving ({hours})", money(r.serving_usd)),
        ("- training", money(r.training_usd)),
        ("- audit", money(r.audit_usd)),
        ("- judge", money(r.judge_usd)),
        ("- rationales", money(r.rationale_usd)),
        ("- repeats", money(r.repeat_usd)),
        ("- replays", money(r.replay_usd)),
        ("- hosted candidates", money(r.hosted_usd)),
        ("= net saving against the teacher", money(r.net_usd)),
        *(
            (f"{what} against the cheapest hosted model that passes", money(usd) if passed else NONE_PASSED)
            for what, usd in rival
        ),
    ]
    return Section("Ledger", ("", "US dollars"), tuple(rows), ". ".join(r.notes))


def _forecast(one: Forecast) -> Section:
    figures = {
        "spent on the teacher": one.teacher_usd, "avoided (estimate)": one.avoided_usd,
        "serving, learning and evidence": one.costs_usd, "net saving": one.net_usd,
    }  # fmt: skip
    rows = tuple((name, "unknown" if usd is None else money(usd)) for name, usd in figures.items())
    return Section(f"Forecast of {one.month:%Y-%m}", ("", "US dollars"), rows, one.basis)


def _tasks(one: Statement) -> Section:
    columns = (
        "task", "exchanges", "by candidate", "fell back", "teacher spend", "avoided (estimate)", "training", "audit",
        "judge", "rationales", "repeats", "replays", "hosted", "unpriced", "cheapest hosted that passes", "same at it",
    )  # fmt: skip
    rows = [
        (
            line.task or "(no task)", f"{line.exchanges:,}", f"{line.served:,}", f"{line.fallbacks:,}",
            money(line.teacher_usd), money(line.avoided_usd) if line.served else "-", money(line.training_usd),
            money(line.audit_usd), money(line.judge_usd), money(line.rationale_usd), money(line.repeat_usd),
            money(line.replay_usd), money(line.hosted_usd), f"{line.unpriced:,}", line.rival or NONE_PASSED,
            money(line.rival_usd) if line.rival else "-",
        )
        for line in one.report.tasks
    ]  # fmt: skip
    return Section("Tasks", columns, tuple(rows))


def _charges(one: Statement) -> Section:
    rows = [
        (
            line.task or "-", line.kind, f"{line.quantity:,.4g} {line.unit or ''}".strip(), f"{line.events:,}",
            f"{line.unpriced:,}", money(line.usd),
        )
        for line in one.report.lines
    ]  # fmt: skip
    return Section("Charges", ("task", "kind", "quantity", "events", "unpriced", "US dollars"), tuple(rows))


def _students(one: Statement) -> Section:
    def rate(student: Student) -> str:
        return student.why if student.break_even is None else f"{student.break_even:,.1f}"

    rows = [
        (
            student.candidate, student.task, student.stage, f"{student.served:,}", f"{student.requests:,.1f}",
            "unknown" if student.saved_usd is None else money(student.saved_usd),
            "unknown" if student.fixed_usd is None else money(student.fixed_usd), rate(student),
        )
        for student in one.students
    ]  # fmt: skip
    columns = (
        "student", "task", "stage", "answered", "requests a day", "saved an exchange", "fixed a day",
        "breaks even at requests a day",
    )  # fmt: skip
    return Section("Students", columns, tuple(rows))


def _days(one: Statement) -> Section:
    rows = [
        (
            str(day.day), f"{day.exchanges:,}", f"{day.served:,}", money(day.teacher_usd), money(day.avoided_usd),
            money(sum(day.costs_usd.values())), money(day.net_usd), f"{day.unpriced:,}",
        )
        for day in one.days
    ]  # fmt: skip
    columns = ("day (UTC)", "exchanges", "by candidate", "teacher spend", "avoided", "costs", "net", "unpriced")
    return Section("Days", columns, tuple(rows))


def _dated(value: Any) -> Any:
    """With days and moments as text."""
    if isinstance(value, Mapping):
        return {key: _dated(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_dated(one) for one in value]
    return value.isoformat() if isinstance(value, date) else value


Rendered = Callable[[Statement], bytes]
