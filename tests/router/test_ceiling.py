import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import aiohttp
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from proxy.log import Log
from proxy.replay import create_replay
from proxy.sunset import GONE
from proxy.teachers import Teachers
from router.ceiling import Ceiling, Yardstick, drawn, measured, teacher_answer
from router.evidence import evidence
from router.ledger import report
from router.registry import Candidate
from router.shadow import audit, shadow
from tests.router.conftest import PATH, Engine, chat, insert, judged, known, route_to
from tests.router.test_shadow import RECORDED, teacher_at, verdicts
from tests.servers import free_port, serving

ASKED = json.dumps({"model": "gpt-4o", "messages": chat("mine?"), "stream": True, "stream_options": {}})


@pytest.fixture(scope="module")
def replay() -> Iterator[str]:
    with serving(create_replay(RECORDED)) as url:
        yield url


async def shadowed(log: Log, engine: Engine, teacher: str, candidate: Candidate, share: float) -> int:
    async with teacher_at(teacher) as again, aiohttp.ClientSession() as session:
        with serving(engine.app) as url:
            return await shadow(log, session, candidate, route_to(url), 100, 2, Ceiling(Teachers(again), share))


def stored(log: Log, candidate: str = "student-1") -> dict[str, tuple[float | None, str | None]]:
    rows = log.query("SELECT exchange, yardstick, yardstick_answer FROM verdicts WHERE candidate = ?", [candidate])
    return {row[0]: row[1:] for row in rows}


def test_the_share_is_drawn_by_the_id_and_grows_with_the_share(log: Log) -> None:
    ids = [f"{number:06}" for number in range(2_000)]
    some, more = drawn(log, ids, 0.1), drawn(log, ids, 0.5)
    assert 120 < len(some) < 280
    assert some < more < set(ids)
    assert drawn(log, ids[::-1], 0.1) == some
    assert (drawn(log, ids, 0.0), drawn(log, ids, 1.0)) == (set(), set(ids))


async def test_the_teacher_is_asked_as_it_was_but_for_the_stream(replay: str) -> None:
    async with teacher_at(replay) as teacher:
        status, again = await teacher_answer(teacher, ASKED)
        assert (status, again.answer, again.finish_reason) == (200, "billing", "stop")
    async with teacher_at(f"http://127.0.0.1:{free_port()}") as nobody:
        status, again = await teacher_answer(nobody, ASKED)
        assert (status, again.finish_reason) == (503, None)


@pytest.mark.usefixtures("ingest")
async def test_shadow_asks_again_on_covered_exchanges_and_it_is_paid_for(log: Log, engine: Engine, replay: str) -> None:
    engine.say = lambda text: ("billing", 0.2 if "unsure" in text else 0.9)
    (same,), (other,) = insert(log, ["mine?"]), insert(log, ["where?"], answer="billing")
    (unsure,) = insert(log, ["unsure"])
    candidate = known(log)
    assert await shadowed(log, engine, replay, candidate, 1.0) == 3
    assert stored(log) == {same: (1.0, "billing"), other: (0.0, "shipping"), unsure: (None, None)}
    assert log.query("SELECT kind, task, exchange, usd FROM spend ORDER BY exchange") == [
        ("ceiling", "triage", same, 10.0),
        ("ceiling", "triage", other, 10.0),
    ]
    assert (report(log).audit_usd, report(log).net_usd) == (20.0, -20.0)
    found = evidence(log, candidate).parity
    assert (found.n, found.measured, found.ceiling, found.mean) == (2, 2, 0.5, 1.0)


@pytest.mark.usefixtures("ingest")
async def test_a_later_candidate_uses_what_was_paid_for(log: Log, engine: Engine, replay: str) -> None:
    (exchange,) = insert(log, ["mine?"])
    await shadowed(log, engine, replay, known(log), 1.0)
    await shadowed(log, engine, replay, known(log, "student-2"), 1.0)
    assert stored(log, "student-2") == stored(log) == {exchange: (1.0, "billing")}
    assert log.query("SELECT count(*) FROM spend") == [(1,)]
    await shadowed(log, engine, replay, known(log, "student-3", evaluator="json"), 1.0)  # Scores otherwise: asks anew.
    assert log.query("SELECT count(*) FROM spend") == [(2,)]


def test_yardsticks_of_another_way_of_scoring_are_not_reused(log: Log) -> None:
    judged(log, known(log), [1.0, 0.0], yardstick=0.5, yardstick_answer="x")
    judged(log, known(log, "student-2", evaluator="json"), [1.0], first=2, yardstick=0.7)
    aliased = known(log, "student-3", card=known(log, "student-4").card | {"aliases": {"pay": "billing"}})
    judged(log, aliased, [1.0], first=3, yardstick=0.9)
    ids = ["000000", "000002", "000003", "000009"]
    assert measured(log, ids, known(log, "student-5")) == {"000000": Yardstick(0.5, "x")}
    assert measured(log, ids, aliased) == {"000003": Yardstick(0.9, None)}


@pytest.mark.usefixtures("ingest")
async def test_without_the_teacher_there_is_a_verdict_and_no_yardstick(log: Log, engine: Engine) -> None:
    (exchange,) = insert(log, ["mine?"])
    assert await shadowed(log, engine, f"http://127.0.0.1:{free_port()}", known(log), 1.0) == 1
    assert stored(log) == {exchange: (None, None)}
    assert log.query("SELECT count(*) FROM spend") == [(0,)]


@pytest.mark.usefixtures("ingest")
async def test_a_model_that_has_ended_is_not_asked_again(log: Log, engine: Engine, replay: str) -> None:
    (ended,), (other,) = insert(log, ["mine?"]), insert(log, ["mine?"], request=ASKED.replace("gpt-4o", "gpt-5"))
    candidate = known(log)
    async with teacher_at(replay) as again, aiohttp.ClientSession() as session:
        with serving(engine.app) as url:
            ceiling = Ceiling(Teachers(again), 1.0, ["gpt-4o"])
            assert await shadow(log, session, candidate, route_to(url), 100, 2, ceiling) == 2
    assert stored(log) == {ended: (None, None), other: (1.0, "billing")}


@pytest.mark.usefixtures("ingest")
async def test_each_exchanges_own_teacher_is_asked_again(log: Log, engine: Engine, replay: str) -> None:
    (usual,), (german,) = insert(log, ["mine?"]), insert(log, ["mine?"], teacher="german")
    (gone,) = insert(log, ["mine?"], teacher="gone")
    candidate = known(log)
    with serving(create_replay([replace(RECORDED[0], answer="shipping")])) as other, serving(engine.app) as url:
        async with teacher_at(replay) as one, teacher_at(other) as two, aiohttp.ClientSession() as session:
            ceiling = Ceiling(Teachers(one, {"german": two}), 1.0)
            assert await shadow(log, session, candidate, route_to(url), 100, 2, ceiling) == 3
    assert stored(log) == {usual: (1.0, "billing"), german: (0.0, "shipping"), gone: (None, None)}


@pytest.mark.usefixtures("ingest")
async def test_an_audit_asks_the_teacher_of_that_exchange(log: Log, replay: str) -> None:
    candidate = known(log)
    german = [replace(RECORDED[0], answer="shipping")]
    request = json.dumps({"model": "german-large", "messages": chat("mine?")})
    (usual,) = insert(log, ["mine?"], served_by=candidate.id)
    named = {"served_by": candidate.id, "model": "german-large", "request": request}
    (other,) = insert(log, ["mine?"], teacher="german", **named)
    insert(log, ["mine?"], teacher="gone", **named)  # Nobody is there to ask.
    with serving(create_replay(german)) as url:
        async with teacher_at(replay) as one, teacher_at(url) as two:
            teachers = Teachers(one, {"german": two})
            ended = ["german-large"]  # Of the usual teacher, which sunsets are about.
            assert await audit(log, teachers, candidate, 1.0, 100, ended=ended) == 2
    assert {key: row[3] for key, row in verdicts(log).items()} == {usual: "billing", other: "shipping"}
    assert log.query("SELECT exchange, model FROM spend WHERE kind = 'audit' ORDER BY exchange") == [
        (usual, "gpt-4o"),
        (other, "german-large"),
    ]


async def test_a_teacher_without_such_a_model_is_told_from_one_without_such_an_address() -> None:
    for code, status in (("model_not_found", GONE), ("unknown_url", 404)):
        teacher = FastAPI(openapi_url=None)
        answer = JSONResponse({"error": {"message": "not here", "code": code}}, 404)
        teacher.add_api_route(PATH, partial(asyncio.sleep, 0, answer), methods=["POST"], response_model=None)
        with serving(teacher) as url:
            async with teacher_at(url) as asked:
                found = await teacher_answer(asked, ASKED)
        assert (found[0], found[1].finish_reason) == (status, None)
