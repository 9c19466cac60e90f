import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distiller.curate import Recorded
from distiller.questions import Asked
from distiller.rationales import LONGEST, QUESTION, Wish, chosen, kept, question, sort
from distiller.rationales import ask as ask_why
from proxy.errors import BadInput
from proxy.log import Log
from router.ledger import report
from tests.distiller.asking import PRICE, asked, charged, recorded, row, sizes
from tests.logs import migrated
from tests.router.conftest import chat
from tests.tutors import Tutor


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def ask(log: Log, tutor: Tutor, rows: list[Recorded], wish: Wish) -> Asked:
    stop = asyncio.Event()
    return asked(log, tutor, sort(), lambda asker: ask_why(asker, rows, wish, PRICE, sizes, stop, lambda *_: None))


def test_the_recorded_conversation_and_its_answer_are_asked_about_and_nothing_else() -> None:
    tools = {"tools": [{}], "response_format": {"type": "json_object"}, "user": "u", "n": 4}
    body = json.loads(question(row("a", "letter", **tools), PRICE, sizes).body)
    turns = [{"role": "assistant", "content": "billing"}, {"role": "user", "content": QUESTION}]
    assert body == {
        "model": "gpt-4o", "messages": [*chat("letter"), *turns], "temperature": 0, "max_tokens": LONGEST,
    }  # fmt: skip
    newer = json.loads(question(row("a", "letter", max_completion_tokens=9), PRICE, sizes).body)
    assert "max_tokens" not in newer
    assert newer["max_completion_tokens"] == LONGEST


def test_what_is_told_is_kept_redacted_charged_and_never_asked_again(log: Log) -> None:
    rows, tutor = recorded(log, 6), Tutor(text=" It names ann@example.com, so billing. ")
    done = ask(log, tutor, rows, Wish(100.0, 1.0))
    assert (done.wanted, done.asked, done.kept, done.ended) == (6, 6, 6, "done")
    assert done.usd == pytest.approx(6 * 0.09)
    assert sorted(kept(log, [one.exchange_id for one in rows])) == sorted(one.exchange_id for one in rows)
    (text,) = set(kept(log, [one.exchange_id for one in rows]).values())
    assert "ann@example.com" not in text
    assert text.startswith("It names ")
    paid = {(usd, quantity, unit) for _, usd, quantity, unit, _ in charged(log, "rationale")}
    assert paid == {(0.09, 1.0, "question")}
    assert report(log).rationale_usd == pytest.approx(0.54)
    again = ask(log, tutor, rows, Wish(100.0, 1.0))
    assert (again.known, again.asked, len(tutor.asked)) == (6, 0, 6)


def test_what_was_cut_off_is_paid_for_and_is_no_rationale(log: Log) -> None:
    rows, tutor = recorded(log, 2), Tutor(finish="length")
    done = ask(log, tutor, rows, Wish(100.0, 1.0))
    assert (done.asked, done.kept, done.cut) == (2, 0, 2)
    assert kept(log, [one.exchange_id for one in rows]) == {}
    assert ask(log, tutor, rows, Wish(100.0, 1.0)).asked == 0


def test_more_share_asks_about_more_and_the_same_ones_newest_first() -> None:
    rows = [row(f"{number:04}", "x") for number in range(400)]
    few, many = chosen(rows, 0.2), chosen(rows, 0.5)
    assert {one.exchange_id for one in few} < {one.exchange_id for one in many}
    assert 50 < len(few) < 110 < 160 < len(many) < 240
    assert [one.exchange_id for one in few] == sorted((one.exchange_id for one in few), reverse=True)
    assert len(chosen(rows, 1.0)) == 400


@pytest.mark.parametrize("wish", [{"budget": -1.0}, {"budget": float("nan")}, {"share": 0.0}, {"most": 0}])
def test_a_wish_that_makes_no_sense_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Wish(**({"budget": 1.0} | wish))
