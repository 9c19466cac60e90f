from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from router.books import Books, Entry, Means, Volume
from router.breaking_even import AMORTISED, breaking_even
from router.registry import HOSTED, LIVE, RETIRED, SHADOW, Candidate

DAY = date(2026, 6, 1)
LAST = DAY + timedelta(days=9)


def candidate(name: str = "student-1", **changes: Any) -> Candidate:
    given: dict[str, Any] = {
        "id": name, "created_at": datetime(2026, 6, 1, tzinfo=UTC), "task": "t", "kind": "student", "ordinal": 1,
        "evaluator": "label", "threshold": None, "margin": 0.05, "alpha": 0.05, "snapshot": 1, "bundle": "", "card": {},
        "stage": LIVE, "since": datetime(2026, 6, 1, tzinfo=UTC), "reason": "", "share": 1.0,
    }  # fmt: skip
    return Candidate(**(given | changes))


def entry(kind: str, usd: str, task: str | None = "t", model: str | None = None, quantity: int = 1) -> Entry:
    return Entry(DAY, task, kind, model, "hour", 1, 0, Decimal(usd), Decimal(quantity))


ENTRIES = [
    entry("serving", "24", None, quantity=48),  # 12 dollars a day
    entry("audit", "5"),
]
VOLUMES = [Volume(DAY, "t", "student-1", 60, 0), Volume(LAST, "t", "teacher", 40, 0)]
TRAINED = {"student-1": Decimal(60), "student-2": Decimal(999)}  # 2 a day, whenever that was
BOOKS = Books(None, None, ENTRIES, VOLUMES, Means({}, {("t", DAY): (Decimal(2), 1)}))


def test_a_student_pays_for_itself_at_the_rate_where_it_saves_what_is_fixed() -> None:
    (found,) = breaking_even(BOOKS, [candidate()], TRAINED)
    saved = (60 * 2 - 5) / 100  # Of every exchange of the task.
    assert (found.served, found.requests, found.saved_usd) == (60, 10.0, pytest.approx(saved))
    assert found.fixed_usd == pytest.approx(12 + 60 / AMORTISED)
    assert found.break_even == pytest.approx(14 / saved)
    assert found.why == ""


def test_students_that_stand_share_the_engine_and_rivals_have_none() -> None:
    others = [
        candidate("student-2", stage=SHADOW), candidate("rival", kind=HOSTED), candidate("gone", stage=RETIRED),
        candidate("student-3", task="u"),
    ]  # fmt: skip
    found = breaking_even(BOOKS, [candidate(), *others], TRAINED)
    assert [one.candidate for one in found] == ["student-1", "student-2", "student-3"]
    assert [one.fixed_usd for one in found] == pytest.approx([4 + 2, 4 + 999 / 30, 4])
    assert (found[2].break_even, found[2].why) == (None, "it answers nobody yet")


def test_who_was_retired_counts_where_it_answered() -> None:
    (found,) = breaking_even(BOOKS, [candidate(stage=RETIRED)], TRAINED)
    assert found.fixed_usd == pytest.approx(14)


def test_evidence_without_a_price_is_not_free() -> None:
    unknown = Entry(DAY, "t", "judge", None, "question", 3, 3, Decimal(0), Decimal(3))
    (found,) = breaking_even(replace(BOOKS, entries=[*ENTRIES, unknown]), [candidate()], TRAINED)
    assert (found.saved_usd, found.why) == (None, "what it saves is unpriced")


def test_why_there_is_no_rate_is_said() -> None:
    cases = {
        "an exchange saves nothing": replace(BOOKS, entries=[*ENTRIES, entry("judge", "500")]),
        "what it saves is unpriced": replace(BOOKS, means=Means({}, {})),
        "no engine hour was charged": replace(BOOKS, entries=ENTRIES[1:]),
        "it answers nobody yet": replace(BOOKS, volumes=VOLUMES[1:]),
    }
    for why, books in cases.items():
        (found,) = breaking_even(books, [candidate()], TRAINED)
        assert (found.break_even, found.why) == (None, why)
