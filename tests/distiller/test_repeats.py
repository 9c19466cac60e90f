import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.curate import Recorded
from distiller.questions import Asked, Asker, Told
from distiller.repeats import agreement, askable, inconsistent, question, sort
from proxy.log import Log
from router.evaluators import EVALUATORS, evaluator
from router.ledger import report
from tests.distiller.asking import PRICE, asked, charged, recorded, row, sizes
from tests.logs import migrated
from tests.tutors import Tutor

SCORE = EVALUATORS["label"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def ask(log: Log, tutor: Tutor, rows: list[Recorded]) -> Asked:
    async def run(asker: Asker) -> Asked:
        wanted = [asked for one in rows if (asked := question(one, PRICE, sizes))]
        return await asker.run(wanted, 100.0, None, asyncio.Event(), lambda *_: None)

    return asked(log, tutor, sort(rows, SCORE), run)


def test_the_request_is_asked_again_as_it_was() -> None:
    form = {"type": "json_object"}
    given = {"temperature": 0.7, "response_format": form, "max_tokens": 9, "n": 3, "logprobs": True, "top_logprobs": 5}
    found = question(replace(row("a", "letter", **given), teacher="eu"), PRICE, sizes)
    assert found is not None
    assert found.teacher == "eu"
    assert json.loads(found.body) == {
        "model": "gpt-4o", "messages": list(row("a", "letter").messages), "seed": 3, "temperature": 0.7,
        "response_format": form, "max_tokens": 9,
    }  # fmt: skip


def test_what_could_cost_anything_is_not_asked() -> None:
    assert question(row("a", "letter", web_search_options={"user_location": None}), PRICE, sizes) is None


def test_what_is_told_is_kept_redacted_charged_and_never_asked_again(log: Log) -> None:
    rows, tutor = recorded(log, 3), Tutor(text=" Billing. ")
    assert ask(log, tutor, rows).kept == 3
    told = log.query("SELECT answer, finish, agreed, usd, model FROM repeats")
    assert told == [("Billing.", "stop", 1.0, 0.09, "gpt-4o")] * 3
    assert {(usd, unit) for _, usd, _, unit, _ in charged(log, "repeat")} == {(0.09, "question")}
    assert report(log).repeat_usd == pytest.approx(0.27)
    assert inconsistent(log, rows, SCORE) == frozenset()
    tutor.text = "ann@example.com"
    assert (ask(log, tutor, rows).known, len(tutor.asked)) == (3, 3)
    more = recorded(log, 1)
    ask(log, tutor, more)
    assert inconsistent(log, [*rows, *more], SCORE) == {more[0].exchange_id}
    assert log.query("SELECT count(*) FROM repeats WHERE contains(answer, 'ann@')") == [(0,)]


def test_what_was_cut_off_says_nothing(log: Log) -> None:
    rows = recorded(log, 2)
    assert ask(log, Tutor(text="other", finish="length"), rows).cut == 2
    assert log.query("SELECT DISTINCT agreed FROM repeats") == [(None,)]
    assert inconsistent(log, rows, SCORE) == frozenset()
    assert agreement(rows[0], Told(None, "stop"), SCORE) is None


def test_whether_answers_agree_is_asked_by_what_is_declared_now(log: Log) -> None:
    rows = recorded(log, 1)
    ask(log, Tutor(text="invoices"), rows)
    assert inconsistent(log, rows, SCORE) == {rows[0].exchange_id}
    assert inconsistent(log, rows, evaluator("label", {"invoices": "billing"})) == frozenset()


def test_nothing_is_kept_of_an_exchange_that_is_gone(log: Log) -> None:
    rows = recorded(log, 1)
    log.query("DELETE FROM exchanges")
    ask(log, Tutor(), rows)
    assert log.query("SELECT * FROM repeats") == []
    assert len(charged(log, "repeat")) == 1


def test_what_redaction_changed_is_not_asked_again() -> None:
    assert askable(row("a", "letter"))
    assert not askable(row("a", "write to [EMAIL_1]"))
    assert not askable(replace(row("a", "letter"), answer="[EMAIL_1]"))
