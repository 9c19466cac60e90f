import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI, Response

from proxy.errors import BadInput, Unavailable
from proxy.log import Log
from proxy.replay import create_replay
from proxy.settings import TeacherSettings
from proxy.teachers import Teachers
from proxy.traffic_file import Row
from proxy.upstream import Teacher
from router import evidence, similarity
from router.judge import Judge, Message, Spoken
from router.judging import missing
from router.prompt import line_hash
from router.registry import CANARY, LIVE, Candidate, candidates, move
from router.shadow import audit, shadow
from tests.judges import Judges
from tests.router.conftest import Engine, chat, insert, known, now, route_to
from tests.servers import free_port, serving

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        },
    }
]


def add(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": arguments}}


RECORDED = [
    Row(tuple(chat("mine?")), "billing", None, "gpt-4o", None),
    Row(tuple(chat("where?")), "shipping", None, "gpt-4o", None),
    Row(tuple(chat("Add up.")), None, (add('{"a": 1, "b": 2}'),), "gpt-4o", tuple(TOOLS)),
]


async def compared(log: Log, engine: Engine, candidate: Candidate, limit: int = 100, **route: Any) -> int:
    with serving(engine.app) as url:
        async with aiohttp.ClientSession() as session:
            return await shadow(log, session, candidate, route_to(url, **route), limit, 2)


def verdicts(log: Log) -> dict[str, tuple[Any, ...]]:
    rows = log.query("SELECT exchange, verdict, covered, confidence, answer, error, kind FROM verdicts")
    return {row[0]: row[1:] for row in rows}


async def test_right_wrong_and_unsure_answers_are_told_apart(log: Log, engine: Engine) -> None:
    engine.say = lambda text: {"hard": ("billing", 0.25), "odd": ("nonsense", 1.0)}.get(text, ("billing", 1.0))
    (right,), (wrong,) = insert(log, ["easy"]), insert(log, ["tricky"], answer="shipping")
    hard, odd = insert(log, ["hard", "odd"])
    assert await compared(log, engine, known(log)) == 4
    found = verdicts(log)
    assert found[right] == (1.0, True, 1.0, "billing", None, "shadow")
    assert found[wrong] == (0.0, True, 1.0, "billing", None, "shadow")
    assert found[hard] == (1.0, False, pytest.approx(0.25), "billing", None, "shadow")
    assert found[odd] == (0.0, False, 1.0, "nonsense", None, "shadow")


async def test_what_was_declared_at_registration_is_what_scores(log: Log, engine: Engine) -> None:
    card = known(log, "student-0").card
    candidate = known(log, card=card | {"aliases": {"billing": "shipping"}})
    (exchange,) = insert(log, ["a"], answer="Shipping")
    await compared(log, engine, candidate)
    assert verdicts(log)[exchange][0] == 1.0


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An evaluator of the operator's that fails on one question."""
    (tmp_path / "shadow_scores.py").write_text(
        "def judge(request, teacher, candidate):\n"
        "    return None if 'where' in str(request['messages']) else 0.25 + 0.5 * (teacher == candidate)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shadow_scores", raising=False)
    return "shadow_scores:judge"


async def test_the_operators_evaluator_scores(log: Log, engine: Engine, own: str) -> None:
    (exchange,) = insert(log, ["a"])
    await compared(log, engine, known(log, evaluator=own), evaluator=own)
    assert verdicts(log)[exchange][:2] == (0.75, True)


async def test_where_the_operators_evaluator_fails_nothing_is_judged(log: Log, engine: Engine, own: str) -> None:
    candidate = known(log, evaluator=own)
    insert(log, ["a", "where?", "b"])
    for _ in range(2):
        with pytest.raises(BadInput, match=f"{own} returned None"):
            await compared(log, engine, candidate, evaluator=own)
    with pytest.raises(BadInput, match="ModuleNotFoundError"):
        await compared(log, engine, known(log, "student-2", evaluator="gone_since:judge"))
    assert verdicts(log) == {}


async def test_an_exchange_is_compared_once_and_oldest_first(log: Log, engine: Engine) -> None:
    candidate = known(log)
    ids = sorted(insert(log, ["a", "b", "c"]))
    assert [await compared(log, engine, candidate, limit=2) for _ in range(3)] == [2, 1, 0]
    assert len(engine.asked) == 3
    assert set(verdicts(log)) == set(ids)


async def test_only_whole_plain_answers_after_the_students_data_are_compared(log: Log, engine: Engine) -> None:
    for columns in (
        {"ts": "2019-12-31T00:00:00+00:00"}, {"task": "another"}, {"served_by": "student-0"}, {"status": 500},
        {"partial": True}, {"finish_reason": "length"}, {"tool_calls": "[]"}, {"request_encoding": "base64"},
    ):  # fmt: skip
        insert(log, ["x"], **columns)
    insert(log, ["x"], answer=None)
    assert await compared(log, engine, known(log)) == 0


async def test_a_failing_candidate_is_an_uncovered_verdict_with_the_error(log: Log, engine: Engine) -> None:
    (exchange,) = insert(log, ["a"])
    engine.raw = b"<html>"
    await compared(log, engine, known(log))
    assert verdicts(log)[exchange] == (0.0, False, None, None, "candidate's answer is not a chat completion", "shadow")


async def test_what_is_not_for_a_student_is_uncovered_and_never_sent(log: Log, engine: Engine) -> None:
    candidate = known(log)
    for request in ({"messages": chat("a"), "n": 3}, {"messages": 5}, {"messages": ["x"]}, {}):
        insert(log, ["a"], request=json.dumps(request))
    assert await compared(log, engine, candidate) == 4
    errors = {row[4] for row in verdicts(log).values()}
    assert errors == {"asks for several choices", "the request holds more than text"}
    assert not any(row[1] for row in verdicts(log).values())
    assert engine.asked == []


async def test_a_shadow_waits_longer_than_a_client_would(log: Log, engine: Engine) -> None:
    (exchange,) = insert(log, ["a"])
    engine.delay = 0.3
    await compared(log, engine, known(log), timeout=0.01)
    assert verdicts(log)[exchange][1] is True


async def test_after_promotion_only_what_was_held_back_is_compared_and_is_evidence(log: Log, engine: Engine) -> None:
    candidate = known(log)
    for stage in (CANARY, LIVE):
        move(log, now(log), stage, "for the test", {"for": "the test"}, 0.5)
        insert(log, ["a"], reason=f"{stage}: outside the share")
        insert(log, ["a"], reason=stage, fallback="unsure")
    right, wrong = insert(log, ["a", "b"], reason="live: held back")
    engine.say = lambda text: ("billing" if text == "a" else "shipping", 0.9)
    assert await compared(log, engine, now(log)) == 2
    found = verdicts(log)
    assert found == {
        right: (1.0, True, pytest.approx(0.9), "billing", None, "holdback"),
        wrong: (0.0, True, pytest.approx(0.9), "shipping", None, "holdback"),
    }
    after = evidence.audited(log, candidate).parity
    assert (after.n, after.mean) == (2, 0.5)
    assert evidence.evidence(log, candidate).shadowed == 0


async def test_a_changed_template_is_no_evidence_about_a_student_of_the_old_one(log: Log, engine: Engine) -> None:
    (exchange,) = insert(log, ["a"])
    candidate = known(log)
    await compared(log, engine, candidate, static=(line_hash("Say which team."),))
    assert verdicts(log)[exchange] == (0.0, False, None, None, "template changed", "shadow")
    assert engine.asked == []
    assert evidence.evidence(log, candidate).parity.n == 0


@pytest.fixture(scope="module")
def replay() -> Iterator[str]:
    with serving(create_replay(RECORDED)) as url:
        yield url


@asynccontextmanager
async def teacher_at(url: str) -> AsyncIterator[Teacher]:
    teacher = Teacher(TeacherSettings(url=url))
    yield teacher
    teacher.close()


async def audited(log: Log, url: str, candidate: Candidate, share: float = 1.0) -> int:
    async with teacher_at(url) as teacher:
        return await audit(log, Teachers(teacher), candidate, share, 100)


@pytest.mark.usefixtures("ingest")
async def test_an_audit_asks_the_teacher_what_the_candidate_answered(log: Log, replay: str) -> None:
    candidate = known(log)
    request = json.dumps({"model": "gpt-4o", "messages": chat("mine?"), "stream": True, "stream_options": {}})
    (right,) = insert(log, ["mine?"], served_by=candidate.id, request=request)
    (wrong,) = insert(log, ["where?"], served_by=candidate.id)
    insert(log, ["mine?"], served_by="student-0")
    insert(log, ["mine?"], served_by=candidate.id, partial=True, answer="bil")  # Its client left.
    assert await audited(log, replay, candidate) == 2
    assert verdicts(log) == {
        right: (1.0, True, None, "billing", None, "audit"),
        wrong: (0.0, True, None, "shipping", None, "audit"),
    }
    assert await audited(log, replay, candidate) == 0


@pytest.mark.usefixtures("ingest")
async def test_an_audit_compares_calls_of_tools(log: Log, replay: str) -> None:
    candidate = known(log, evaluator="tools")
    request = json.dumps({"model": "gpt-4o", "messages": chat("Add up."), "tools": TOOLS})
    same, other = (
        insert(log, ["Add up."], None, served_by=candidate.id, request=request, tool_calls=json.dumps([add(numbers)]))[
            0
        ]
        for numbers in ('{"b": "2", "a": 1.0}', '{"a": 1, "b": 3}')
    )
    (text,) = insert(log, ["Add up."], "3", served_by=candidate.id, request=request)
    assert await audited(log, replay, candidate) == 3
    found = verdicts(log)
    assert {one: found[one][:2] for one in (same, other, text)} == {
        same: (1.0, True), other: (0.5, True), text: (0.0, True)
    }  # fmt: skip


@pytest.mark.usefixtures("ingest")
async def test_an_audit_that_cannot_be_scored_is_no_verdict_and_is_paid_once(log: Log, replay: str, own: str) -> None:
    candidate = known(log, evaluator=own)
    (failing,), (right,) = (insert(log, [text], served_by=candidate.id) for text in ("where?", "mine?"))
    assert [await audited(log, replay, candidate) for _ in range(2)] == [2, 0]
    error = f"evaluator {own} returned None: it must return a number in [0, 1]"
    assert verdicts(log) == {
        failing: (0.0, False, None, "shipping", error, "audit"),
        right: (0.75, True, None, "billing", None, "audit"),
    }
    assert evidence.audited(log, candidate).parity.n == 1
    assert log.query("SELECT count(*) FROM spend WHERE kind = 'audit'") == [(2,)]


@pytest.mark.usefixtures("ingest")
async def test_an_audit_is_paid_for(log: Log, replay: str) -> None:
    candidate = known(log)
    (exchange,) = insert(log, ["mine?"], served_by=candidate.id)
    (unpriced,) = insert(
        log, ["x"], served_by=candidate.id, request=json.dumps({"model": "own", "messages": chat("mine?")})
    )
    await audited(log, replay, candidate)
    rows = log.query("SELECT kind, task, model, exchange, usd FROM spend ORDER BY usd")
    assert rows == [
        ("audit", "triage", "gpt-4o", exchange, 10.0),
        ("audit", "triage", "own", unpriced, None),
    ]


@pytest.mark.usefixtures("ingest")
async def test_only_a_share_is_audited_and_always_the_same(log: Log, replay: str) -> None:
    candidate = known(log)
    insert(log, ["mine?"] * 60, served_by=candidate.id)
    assert await audited(log, replay, candidate, 0.0) == 0
    some = await audited(log, replay, candidate, 0.4)
    assert 10 <= some <= 40
    assert await audited(log, replay, candidate, 0.4) == 0
    assert await audited(log, replay, candidate, 1.0) == 60 - some


@pytest.mark.usefixtures("ingest")
async def test_without_an_answer_of_the_teacher_there_is_no_verdict(log: Log, replay: str) -> None:
    candidate = known(log)
    insert(log, ["never recorded"], served_by=candidate.id)
    assert await audited(log, replay, candidate) == 0
    assert await audited(log, f"http://127.0.0.1:{free_port()}", candidate) == 0
    assert log.query("SELECT count(*) FROM spend") == [(0,)]


@pytest.mark.usefixtures("ingest")
async def test_a_teacher_that_refuses_now_disagrees_and_is_asked_once(log: Log) -> None:
    candidate = known(log)
    (exchange,) = insert(log, ["mine?"], served_by=candidate.id)
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    app = FastAPI()
    app.add_api_route(
        "/v1/chat/completions",
        lambda: {"choices": [{"index": 0, "message": refusal, "finish_reason": "stop"}]},
        methods=["POST"],
    )
    with serving(app) as url:
        assert [await audited(log, url, candidate) for _ in range(2)] == [1, 0]
    assert verdicts(log)[exchange][:2] == (0.0, True)


@pytest.mark.parametrize(
    ("status", "final"), [(400, True), (422, True), (401, False), (404, False), (429, False), (500, False)]
)
@pytest.mark.usefixtures("ingest")
async def test_what_a_teacher_will_never_answer_stands_in_nobodys_way(log: Log, status: int, final: bool) -> None:
    candidate = known(log)
    (exchange,) = insert(log, ["mine?"], served_by=candidate.id)
    app = FastAPI()
    app.add_api_route("/v1/chat/completions", lambda: Response("{}", status), methods=["POST"])
    with serving(app) as url:
        assert [await audited(log, url, candidate) for _ in range(2)] == [int(final), 0]
    if final:
        assert verdicts(log)[exchange][:2] == (0.0, False)
        assert verdicts(log)[exchange][4] == f"the teacher answered {status}"
    assert evidence.audited(log, candidate).parity.n == 0
    assert log.query("SELECT count(*) FROM spend") == [(0,)]


RIGHT = "It rained all night, so the street is wet."


def judge_of(way: str) -> Judge:
    judges = Judges({"why?": RIGHT, "mine?": "billing"})

    async def ask(messages: Sequence[Message]) -> Spoken:
        if way == "gone":
            raise Unavailable("nobody there")
        return Spoken(judges.say(way, [dict(message) for message in messages]), 0.25)

    return Judge(f"test/{way}", ask)


async def free_text(log: Log, engine: Engine, judge: Judge | None, least: float | None = None) -> tuple[int, str, str]:
    candidate = known(log, evaluator="judge", threshold=least)
    (same,), (worse,) = (insert(log, ["why?"], answer=answer) for answer in (RIGHT.upper(), RIGHT))
    engine.say = lambda text: (RIGHT if len(engine.asked) == 1 else "No idea.", 0.9)
    with serving(engine.app) as url:
        async with aiohttp.ClientSession() as session:
            route = route_to(url, evaluator="judge", threshold=least)
            return await shadow(log, session, candidate, route, 10, 1, judge=judge), same, worse


async def test_a_judge_decides_about_free_text_and_is_paid(log: Log, engine: Engine) -> None:
    compared, same, worse = await free_text(log, engine, judge_of("perfect"))
    found = verdicts(log)
    told = {same: (1.0, True, 0.9, RIGHT, None, "shadow"), worse: (0.0, True, 0.9, "No idea.", None, "shadow")}
    assert (compared, found) == (2, told)
    rows = log.query("SELECT kind, model, exchange, usd, quantity, unit FROM spend ORDER BY exchange")
    assert rows == [("judge", "test/perfect", exchange, 0.5, 2.0, "question") for exchange in sorted((same, worse))]


async def test_a_judge_is_not_paid_for_what_the_teacher_would_answer(log: Log, engine: Engine) -> None:
    assert (await free_text(log, engine, judge_of("perfect"), 0.95))[0] == 2
    assert {row[1:3] + row[4:] for row in verdicts(log).values()} == {(False, 0.9, None, "shadow")}
    assert log.query("SELECT count(*) FROM spend") == [(0,)]
    assert similarity.alike(log, candidates(log)[0]) == similarity.Alike(0, None, None)


async def test_a_missing_verdict_is_recorded_and_counts_as_the_worst(log: Log, engine: Engine) -> None:
    assert (await free_text(log, engine, judge_of("verbose")))[0] == 2
    assert {row[:2] + row[4:] for row in verdicts(log).values()} == {(0.0, True, "judge: unparseable", "shadow")}
    (candidate,) = candidates(log)
    assert (evidence.evidence(log, candidate).parity.n, missing(log, candidate.id)) == (2, (2, 2))


async def test_without_a_judge_nothing_is_compared(log: Log, engine: Engine) -> None:
    assert (await free_text(log, engine, None))[0] == 0
    assert (verdicts(log), engine.asked) == ({}, [])


async def test_what_the_judge_could_not_be_asked_is_compared_later(log: Log, engine: Engine) -> None:
    judge = judge_of("gone")
    assert (await free_text(log, engine, judge))[0] == 0
    assert verdicts(log) == {}
    asked = len(engine.asked)
    async with aiohttp.ClientSession() as session:  # And nobody is asked while it rests.
        assert await shadow(log, session, candidates(log)[0], route_to("http://nobody"), 10, 1, judge=judge) == 0
    assert len(engine.asked) == asked


@pytest.mark.parametrize(
    ("way", "verdict"),
    [
        ("perfect", (1.0, True, None)), ("verbose", (0.0, True, "judge: unparseable")),
        ("gone", (0.0, False, "nobody there")),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ingest")
async def test_a_judge_decides_about_an_audit(
    log: Log, replay: str, way: str, verdict: tuple[float, bool, str | None]
) -> None:
    candidate = known(log, evaluator="judge")
    insert(log, ["mine?"] * 2, served_by=candidate.id, answer="Billing")
    judge = judge_of(way)
    async with teacher_at(replay) as teacher:
        audited = [await audit(log, Teachers(teacher), candidate, 1.0, 10, judge) for _ in range(2)]
    assert audited == ([1, 0] if way == "gone" else [2, 0])  # A teacher's answer nobody judges is bought once only.
    assert {(row[0], row[1], row[4]) for row in verdicts(log).values()} == {verdict}
    kinds = dict(log.query("SELECT kind, sum(quantity) FROM spend GROUP BY kind"))
    assert kinds == {"perfect": {"audit": 2.0, "judge": 4.0}, "verbose": {"audit": 2.0, "judge": 8.0}}.get(
        way, {"audit": 1.0}
    )
