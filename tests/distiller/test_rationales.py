import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.rationales import (
    AT_ONCE,
    HOPELESS,
    LONGEST,
    QUESTION,
    Asked,
    Asking,
    Purse,
    Wish,
    chosen,
    kept,
    question,
)
from proxy.costs import Sizes
from proxy.errors import BadInput, Refused
from proxy.log import Log
from proxy.patterns import Redaction
from proxy.redact import Redactor
from proxy.settings import NamedTeacherSettings, TeacherSettings
from proxy.teachers import Teachers, connect_teachers
from proxy.upstream import Teacher
from router.ledger import report
from router.prices import cost
from router.settings import Price
from tests.logs import migrated
from tests.router.conftest import TASK, chat, insert
from tests.servers import serving
from tests.tutors import Tutor

PRICE = partial(cost, {"gpt-4o": Price(input=1000.0, output=2000.0)})  # So 50 + 20 tokens cost 0.09 dollars.
NONE = partial(cost, {})


def sizes(_: str) -> Sizes:
    return Sizes()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def recorded(log: Log, count: int) -> list[Recorded]:
    texts = [f"letter {number}" for number in range(count)]
    names = insert(log, texts)
    return [row(name, text) for name, text in zip(names, texts, strict=True)]


def row(name: str, text: str, **body: Any) -> Recorded:
    messages = tuple(chat(text))
    request = {"model": "gpt-4o", "messages": list(messages), "stream": True, "seed": 3, **body}
    return Recorded(name, None, messages, "billing", 200, False, "stop", False, None, request)  # type: ignore[arg-type]


def ask(
    log: Log, tutor: Tutor, rows: list[Recorded], wish: Wish, price: Any = PRICE, stop: bool = False, **options: Any
) -> Asked:
    async def run(url: str) -> Asked:
        teacher, event = Teacher(TeacherSettings(url=url)), asyncio.Event()
        if stop:
            event.set()

        def seen(done: int, total: int) -> None:
            if done >= options.get("stop_at", total + 1):
                event.set()

        redactor = Redactor(Redaction(emails=True))
        try:
            return await Asking(log, TASK, Teachers(teacher), price, sizes, redactor).run(rows, wish, event, seen)
        finally:
            teacher.close()

    with serving(tutor.app()) as url:
        return asyncio.run(run(url))


def charged(log: Log) -> list[tuple[Any, ...]]:
    return log.query("SELECT exchange, usd, quantity, unit, model FROM spend WHERE kind = 'rationale' ORDER BY ts")


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
    assert {(usd, quantity, unit) for _, usd, quantity, unit, _ in charged(log)} == {(0.09, 1.0, "question")}
    assert report(log).rationale_usd == pytest.approx(0.54)
    again = ask(log, tutor, rows, Wish(100.0, 1.0))
    assert (again.known, again.asked, len(tutor.asked)) == (6, 0, 6)


@settings(max_examples=8, deadline=None)
@given(
    budget=st.floats(0, 3), count=st.integers(1, 9), tokens=st.integers(0, LONGEST), usage=st.booleans(),
    fails_at=st.none() | st.integers(0, 9), breaks=st.booleans(), more=st.floats(0, 2),
)  # fmt: skip
def test_the_budget_is_never_overdrawn_and_nothing_is_asked_twice(
    tmp_path_factory: pytest.TempPathFactory, budget: float, count: int, tokens: int, usage: bool,
    fails_at: int | None, breaks: bool, more: float,
) -> None:  # fmt: skip
    log = migrated(tmp_path_factory.mktemp("log"))
    try:
        rows = recorded(log, count)
        tutor = Tutor(tokens=tokens, usage=usage, fails_at=fails_at, breaks=breaks)
        ask(log, tutor, rows, Wish(budget, 1.0))
        assert sum(usd for _, usd, *_ in charged(log)) <= budget + 1e-9
        tutor.fails_at = None
        done = ask(log, tutor, rows, Wish(budget + more, 1.0))
        assert sum(usd for _, usd, *_ in charged(log)) <= budget + more + 1e-9
        answered = log.query("SELECT exchange, count(*) FROM rationales GROUP BY exchange")
        assert {times for _, times in answered} <= {1}
        assert len(answered) == done.known + done.asked
        assert done.ended == ("done" if len(answered) == count else "budget")
    finally:
        log.close()


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(0, 200), st.data())
def test_a_purse_never_gives_more_than_it_holds(bounds: list[int], nano: int, data: st.DataObject) -> None:
    purse, spent, out = Purse(nano), 0, []
    for bound in bounds:
        if purse.reserve(bound):
            out.append(bound)
        if out and data.draw(st.booleans()):
            reserved = out.pop()
            used = data.draw(st.integers(0, reserved))
            purse.settle(reserved, used, True)
            spent += used
        assert spent + sum(out) <= nano
        assert purse.reserved == sum(out)


def test_the_number_of_questions_counts_earlier_runs_even_of_erased_exchanges(log: Log) -> None:
    rows, tutor = recorded(log, 9), Tutor()
    first = ask(log, tutor, rows, Wish(100.0, 1.0, most=2))
    assert (first.asked, first.ended) == (2, "most")
    log.query("DELETE FROM rationales")
    second = ask(log, tutor, rows, Wish(100.0, 1.0, most=5))
    assert (second.asked, second.ended, len(tutor.asked)) == (3, "most", 5)


def test_an_unpriced_model_needs_a_number_of_questions_and_is_told_as_unpriced(log: Log) -> None:
    rows, tutor = recorded(log, 4), Tutor()
    with pytest.raises(Refused, match=r"'gpt-4o' has no price.*--most"):
        ask(log, tutor, rows, Wish(100.0, 1.0), NONE)
    assert tutor.asked == []
    done = ask(log, tutor, rows, Wish(100.0, 1.0, most=3), NONE)
    assert (done.asked, done.usd, report(log).unpriced) == (3, None, 3)


def test_a_stop_keeps_what_was_under_way_and_the_next_run_goes_on(log: Log) -> None:
    rows, tutor = recorded(log, 12), Tutor()
    assert ask(log, tutor, rows, Wish(100.0, 1.0), stop=True).ended == "stopped"
    assert tutor.asked == []
    done = ask(log, tutor, rows, Wish(100.0, 1.0), stop_at=3)
    assert done.ended == "stopped"
    assert 3 <= done.kept == len(tutor.asked) == len(charged(log)) < 12
    assert ask(log, tutor, rows, Wish(100.0, 1.0)).ended == "done"
    assert len(tutor.asked) == 12


def test_why_is_asked_of_the_teacher_that_answered_and_of_nobody_else(log: Log) -> None:
    rows = [
        replace(one, teacher=name)
        for one, name in zip(recorded(log, 6), [None, "german", "gone"] * 2, strict=True)
    ]  # fmt: skip
    usual, german = Tutor(), Tutor()

    async def run(first: str, second: str) -> Asked:
        teachers = connect_teachers(TeacherSettings(url=first, named={"german": NamedTeacherSettings(second)}))
        asking = Asking(log, TASK, teachers, PRICE, sizes, Redactor(Redaction()))
        try:
            return await asking.run(rows, Wish(100.0, 1.0), asyncio.Event(), lambda *_: None)
        finally:
            teachers.close()

    with serving(usual.app()) as first, serving(german.app()) as second:
        done = asyncio.run(run(first, second))
    assert (done.wanted, done.kept, len(usual.asked), len(german.asked)) == (4, 4, 2, 2)
    told = {one.exchange_id for one in rows if one.teacher != "gone"}
    assert set(kept(log, [one.exchange_id for one in rows])) == told


def test_questions_nobody_waits_for_any_more_are_charged_at_their_bound(log: Log) -> None:
    rows, tutor = recorded(log, 9), Tutor(delay=60.0)

    async def run(url: str) -> None:
        teacher = Teacher(TeacherSettings(url=url))
        asking = Asking(log, TASK, Teachers(teacher), PRICE, sizes, Redactor(Redaction()))
        running = asyncio.ensure_future(asking.run(rows, Wish(100.0, 1.0), asyncio.Event(), lambda *_: None))
        while len(tutor.asked) < AT_ONCE:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        teacher.close()

    with serving(tutor.app()) as url:
        asyncio.run(run(url))
    bounds = {one.exchange_id: question(one, PRICE, sizes).nano for one in rows}
    assert len(charged(log)) == AT_ONCE
    assert all(usd == pytest.approx((bounds[name] or 0) / 1e9) for name, usd, *_ in charged(log))
    assert kept(log, list(bounds)) == {}


def test_a_teacher_that_goes_away_ends_the_run_and_costs_nothing(log: Log) -> None:
    rows = recorded(log, 12)
    done = ask(log, Tutor(fails_at=2), rows, Wish(100.0, 1.0))
    assert done.ended == "the teacher answered with status 503"
    assert done.kept == 2 == len(charged(log))


def test_an_answer_that_breaks_off_is_charged_at_the_most_it_can_have_cost(log: Log) -> None:
    rows = recorded(log, 1)
    done = ask(log, Tutor(fails_at=0, breaks=True), rows, Wish(100.0, 1.0))
    assert done.ended.startswith("the teacher broke off")
    bound = question(rows[0], PRICE, sizes).nano
    assert bound is not None
    assert [usd for _, usd, *_ in charged(log)] == [pytest.approx(bound / 1e9)]
    assert log.query("SELECT * FROM rationales") == []


def test_a_teacher_that_declines_everything_is_not_asked_for_ever(log: Log) -> None:
    done = ask(log, tutor := Tutor(fails_at=0, status=400), recorded(log, 40), Wish(100.0, 1.0))
    assert "declined the first" in done.ended
    assert HOPELESS <= len(tutor.asked) < 12
    assert charged(log) == []


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
