import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller.curate import Recorded
from distiller.questions import AT_ONCE, FAILURES, HOPELESS, Asked, Asker, Purse
from distiller.rationales import LONGEST, Wish, kept, question, sort
from proxy.errors import Refused
from proxy.log import Log
from proxy.patterns import Redaction
from proxy.redact import Redactor
from proxy.settings import NamedTeacherSettings, TeacherSettings
from proxy.teachers import Teachers, connect_teachers
from proxy.upstream import Teacher
from router.ledger import report
from tests.distiller.asking import NONE, PRICE, asked, charged, recorded, sizes
from tests.logs import migrated
from tests.router.conftest import TASK
from tests.servers import serving
from tests.tutors import Tutor


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


def ask(
    log: Log, tutor: Tutor, rows: list[Recorded], wish: Wish, price: Any = PRICE, stop: bool = False, **options: Any
) -> Asked:
    """Questions of the sort that rationales are; all rows, the newest first."""

    async def run(asker: Asker) -> Asked:
        event = asyncio.Event()
        if stop:
            event.set()

        def seen(done: int, total: int) -> None:
            if done >= options.get("stop_at", total + 1):
                event.set()

        wanted = [question(one, price, sizes) for one in rows]
        return await asker.run(wanted, wish.budget, wish.most, event, seen)

    return asked(log, tutor, sort(), run, price)


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
        assert sum(usd for _, usd, *_ in charged(log, "rationale")) <= budget + 1e-9
        tutor.fails_at = None
        done = ask(log, tutor, rows, Wish(budget + more, 1.0))
        assert sum(usd for _, usd, *_ in charged(log, "rationale")) <= budget + more + 1e-9
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
    assert 3 <= done.kept == len(tutor.asked) == len(charged(log, "rationale")) < 12
    assert ask(log, tutor, rows, Wish(100.0, 1.0)).ended == "done"
    assert len(tutor.asked) == 12


def test_questions_nobody_waits_for_any_more_are_charged_at_their_bound(log: Log) -> None:
    rows, tutor = recorded(log, 9), Tutor(delay=60.0)

    async def run(url: str) -> None:
        teacher = Teacher(TeacherSettings(url=url))
        asking = Asker(log, TASK, sort(), Teachers(teacher), PRICE, Redactor(Redaction()))
        wanted = [question(one, PRICE, sizes) for one in rows]
        running = asyncio.ensure_future(asking.run(wanted, 100.0, None, asyncio.Event(), lambda *_: None))
        while len(tutor.asked) < AT_ONCE:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        teacher.close()

    with serving(tutor.app()) as url:
        asyncio.run(run(url))
    bounds = {one.exchange_id: question(one, PRICE, sizes).nano for one in rows}
    assert len(charged(log, "rationale")) == AT_ONCE
    assert all(usd == pytest.approx((bounds[name] or 0) / 1e9) for name, usd, *_ in charged(log, "rationale"))
    assert kept(log, list(bounds)) == {}


def test_a_teacher_that_goes_away_ends_the_run_and_costs_nothing(log: Log) -> None:
    rows = recorded(log, 12)
    done = ask(log, Tutor(fails_at=2), rows, Wish(100.0, 1.0))
    assert done.ended == "the teacher answered with status 503"
    assert done.kept == 2 == len(charged(log, "rationale"))


def test_an_answer_that_breaks_off_is_charged_at_the_most_it_can_have_cost(log: Log) -> None:
    rows = recorded(log, 1)
    done = ask(log, Tutor(fails_at=0, breaks=True), rows, Wish(100.0, 1.0))
    assert done.ended.startswith("the teacher broke off")
    bound = question(rows[0], PRICE, sizes).nano
    assert bound is not None
    assert [usd for _, usd, *_ in charged(log, "rationale")] == [pytest.approx(bound / 1e9)]
    assert log.query("SELECT * FROM rationales") == []


def test_a_teacher_that_is_back_is_asked_on_and_one_that_stays_away_is_not(log: Log) -> None:
    rows = recorded(log, 30)
    back = ask(log, tutor := Tutor(fails_at=4, fails=FAILURES - 2), rows, Wish(100.0, 1.0))
    assert len(tutor.asked) == 30
    assert (back.kept, len(back.problems)) == (30 - FAILURES + 1, FAILURES - 1)
    assert back.ended == back.problems[-1]
    away = ask(log, tutor := Tutor(fails_at=0), rows, Wish(100.0, 1.0))  # Those that failed are asked again.
    assert len(tutor.asked) == FAILURES - 1
    assert away.kept == 0
    gone = ask(log, tutor := Tutor(fails_at=0), recorded(log, 30), Wish(100.0, 1.0))
    assert FAILURES <= len(tutor.asked) < FAILURES + AT_ONCE
    assert "503" in gone.ended


def test_a_teacher_that_declines_everything_is_not_asked_for_ever(log: Log) -> None:
    done = ask(log, tutor := Tutor(fails_at=0, status=400), recorded(log, 40), Wish(100.0, 1.0))
    assert "declined the first" in done.ended
    assert HOPELESS <= len(tutor.asked) < 12
    assert charged(log, "rationale") == []


def test_each_teacher_is_asked_about_its_own_answers_and_nobody_about_those_of_one_that_is_gone(log: Log) -> None:
    names = [None, "german", "gone"] * 2
    rows = [replace(one, teacher=name) for one, name in zip(recorded(log, 6), names, strict=True)]
    usual, german = Tutor(), Tutor()

    async def run(first: str, second: str) -> Asked:
        teachers = connect_teachers(TeacherSettings(url=first, named={"german": NamedTeacherSettings(second)}))
        asking = Asker(log, TASK, sort(), teachers, PRICE, Redactor(Redaction()))
        wanted = [question(one, PRICE, sizes) for one in rows]
        try:
            return await asking.run(wanted, 100.0, None, asyncio.Event(), lambda *_: None)
        finally:
            teachers.close()

    with serving(usual.app()) as first, serving(german.app()) as second:
        done = asyncio.run(run(first, second))
    assert (done.wanted, done.kept, len(usual.asked), len(german.asked)) == (4, 4, 2, 2)
    told = {one.exchange_id for one in rows if one.teacher != "gone"}
    assert set(kept(log, [one.exchange_id for one in rows])) == told


def test_what_is_spent_on_another_sort_does_not_count(log: Log) -> None:
    log.query("INSERT INTO spend (id, task, kind, usd) VALUES ('a', ?, 'repeat', 100.0)", [TASK])
    assert ask(log, Tutor(), recorded(log, 2), Wish(100.0)).ended == "done"
