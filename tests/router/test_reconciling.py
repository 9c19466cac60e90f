from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from proxy.ids import ulid
from proxy.log import Log
from router.reconciling import Pair, Used, reconcile
from tests.router.conftest import add_rows, known

ONE, TWO = date(2026, 11, 1), date(2026, 11, 2)


def paid(log: Log, day: int, model: str, prompt: int | None, completion: int | None, **changes: Any) -> None:
    row = {
        "id": ulid(), "ts": datetime(2026, 11, day, 23, 59, tzinfo=UTC), "kind": "teacher", "model": model, "usd": 0.1,
        "quantity": 1.0, "unit": "exchange", "prompt_tokens": prompt, "completion_tokens": completion,
    }  # fmt: skip
    add_rows(log, "spend", [row | changes])


@pytest.fixture
def booked(log: Log) -> Log:
    for _ in range(3):
        paid(log, 1, "gpt-4o", 100, 10)
    paid(log, 2, "gpt-4o", 200, 20)
    paid(log, 2, "openai/gpt-4o", 50, 5, kind="audit")
    paid(log, 2, "claude-x", 1, 1)
    paid(log, 2, "gpt-4o", None, None, kind="serving", usd=99.0)
    return log


BILL = [
    Used(ONE, "gpt-4o-2024-08-06", 3, 300, 30, Decimal("0.3")),
    Used(TWO, "gpt-4o-2024-08-06", 2, 250, 25, Decimal("0.2")),
]


def test_what_agrees_has_no_gap_and_other_models_are_told(booked: Log) -> None:
    found = reconcile(booked, BILL)
    assert (found.first, found.last, found.share) == (ONE, TWO, 0.0)
    assert [(line.day, line.model, line.agrees) for line in found.lines] == [
        (ONE, "gpt-4o", True),
        (TWO, "gpt-4o", True),
    ]
    assert found.total.prompt == Pair(Decimal(550), Decimal(550), Decimal(0))
    assert found.reasons == ("the log has 1 calls of models that the file does not name, in no figure: claude-x",)


def test_a_planted_gap_is_found_to_the_token(booked: Log) -> None:
    found = reconcile(booked, [BILL[0], replace(BILL[1], requests=3, prompt=250 + 77, completion=25 + 1)])
    first, second = found.lines
    assert first.agrees
    assert (second.day, second.model) == (TWO, "gpt-4o")
    gaps = [pair.gap for pair in (second.requests, second.prompt, second.completion, second.usd) if pair is not None]
    assert gaps == [1, 77, 1, 0]
    assert found.share == pytest.approx(1 / 6)  # Of the requests; of the tokens it is less.
    assert "other traffic of the same account, which did not pass through Stillroom" in found.reasons


def test_what_the_log_knows_of_a_gap_is_said(booked: Log) -> None:
    paid(booked, 1, "gpt-4o", None, None, usd=None)
    add_rows(booked, "exchanges", [
        {"id": ulid(), "ts": datetime(2026, 11, 1, tzinfo=UTC), "served_by": "teacher", "usage_source": "estimated"}
    ])  # fmt: skip
    said = " ".join(reconcile(booked, BILL).reasons)
    for words in ("1 calls in the log have no price", "of 1 calls nobody told the tokens", "1 answers are our own",
                  "of some projects or keys only"):  # fmt: skip
        assert words in said


def test_days_that_begin_elsewhere_are_seen(booked: Log) -> None:
    shifted = [replace(BILL[0], requests=2, prompt=200, completion=20, usd=Decimal("0.2")),
               replace(BILL[1], requests=3, prompt=350, completion=35, usd=Decimal("0.3"))]  # fmt: skip
    found = reconcile(booked, shifted)
    assert found.total.agrees
    assert found.share == pytest.approx(0.4)
    assert any("do not begin at midnight UTC" in reason for reason in found.reasons)


def test_without_models_all_of_them_are_meant_and_what_is_not_said_is_not_compared(booked: Log) -> None:
    found = reconcile(booked, [Used(ONE, None, usd=Decimal("0.3")), Used(TWO, None, usd=Decimal("0.3"))])
    assert (found.share, found.total.requests, found.reasons) == (0.0, None, ())


def test_a_day_that_was_not_billed_is_an_infinite_gap(booked: Log) -> None:
    assert reconcile(booked, [Used(ONE, "gpt-4o", 0, 0, 0)]).share == float("inf")


def test_less_than_a_cent_is_rounding_and_a_cent_is_not(booked: Log) -> None:
    rounded = [replace(one, usd=(one.usd or 0) + Decimal("0.004")) for one in BILL]
    assert not [reason for reason in reconcile(booked, rounded).reasons if "other traffic" in reason]
    dear = [replace(BILL[0], usd=Decimal("0.31")), BILL[1]]
    assert [reason for reason in reconcile(booked, dear).reasons if "other traffic" in reason]


@pytest.mark.parametrize("billed", ["gpt-4-0613", "gpt-4-1106-preview", "gpt-4-2024-04-09", "gpt-4"])
def test_a_snapshot_is_its_model(log: Log, billed: str) -> None:
    paid(log, 1, "gpt-4", 7, 3)
    assert reconcile(log, [Used(ONE, billed, 1, 7, 3)]).share == 0.0


def test_hosted_candidates_go_by_the_model_they_are(log: Log) -> None:
    known(log, "rival-1", kind="hosted", card={"model": "small", "rival": "r"})
    paid(log, 1, "rival-1", 7, 3, kind="shadow")
    paid(log, 1, "rival-1", 2, 1, kind="replay")
    paid(log, 1, "small", 14, 6, kind="judge", quantity=2.0, unit="question")
    assert reconcile(log, [Used(ONE, "small", 4, 23, 10)]).share == 0.0
