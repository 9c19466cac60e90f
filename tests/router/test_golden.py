import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import aiohttp
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from proxy.errors import BadInput
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.settings import SunsetSettings
from router.controller import Controller
from router.drift import drifted
from router.evidence import audited
from router.gold import score_gold
from router.golden import SIZE, Golden, golden, standing
from router.ledger import report
from router.policy import Policy, load_policy
from router.registry import CANARY, LIVE, RETIRED, Candidate, move
from tests.router.conftest import PATH, TASK, Engine, insert, judged, known, now, route_to
from tests.router.test_controller import SETTINGS, TRUTH, Loop, looping
from tests.servers import serving

ENDED = ("gpt-4o",)


class Mortal:
    """A teacher that answers as recorded, until it has no such model any more."""

    def __init__(self) -> None:
        self.alive, self.asked = True, 0
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route(PATH, self.chat, methods=["POST"], response_model=None)

    async def chat(self, request: Request) -> JSONResponse:
        self.asked += 1
        if not self.alive:
            return JSONResponse({"error": {"message": "no such model", "code": "model_not_found"}}, 404)
        text = TRUTH[json.loads(await request.body())["messages"][-1]["content"]]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})


@asynccontextmanager
async def outlived(
    log: Log, ingest: Ingest, engine: Engine, home: Path, *sunsets: SunsetSettings
) -> AsyncIterator[tuple[Loop, Mortal]]:
    """A live candidate, certified and audited against its teacher, whose model is no more."""
    mortal, candidate = Mortal(), known(log)
    engine.say = lambda text: (TRUTH[text], 0.95)
    with serving(mortal.app) as url:
        async with looping(log, ingest, engine, url, home) as loop:
            loop.teacher_answers()
            await loop.until_idle()
            insert(log, ["question 1"] * 4, answer="shipping", served_by=candidate.id)
            await loop.until_idle()
            assert now(log).stage == LIVE
            mortal.alive = False
            loop.controller = Controller(log, ingest, SETTINGS, loop.policy, lambda: loop.served, sunsets=sunsets)
            yield loop, mortal


def served(log: Log, count: int) -> None:
    insert(log, ["question 1"] * count, answer="shipping", served_by="student-1")


def kinds(log: Log) -> dict[str, int]:
    return dict(log.query("SELECT kind, count(*) FROM verdicts WHERE candidate = 'student-1' GROUP BY kind"))


async def test_audits_find_the_teacher_gone_and_golden_verdicts_keep_a_sound_candidate_live(
    log: Log, ingest: Ingest, engine: Engine, tmp_path: Path
) -> None:
    async with outlived(log, ingest, engine, tmp_path) as (loop, mortal):
        before, spent = mortal.asked, report(log).audit_usd
        served(log, 5)
        await loop.until_idle()
        assert mortal.asked == before + 5
        served(log, 60)
        await loop.until_idle()
        assert mortal.asked == before + 5
        served(log, 3)
        await loop.controller.round(loop.session, None)  # Golden sets need no key of the teacher.
    assert kinds(log)["golden"] == 63
    assert now(log).stage == LIVE
    assert load_policy(loop.policy).routes[TASK].share == 1.0
    assert report(log).audit_usd == spent
    assert standing(log, now(log)) == Golden(kinds(log)["shadow"], 63, 1.0)


@pytest.mark.parametrize("wrong", [2, 4])
async def test_a_candidate_damaged_after_the_teachers_end_is_retired_by_golden_verdicts(
    log: Log, ingest: Ingest, engine: Engine, tmp_path: Path, wrong: int
) -> None:
    day = SunsetSettings("gpt-4o", date(2020, 1, 1))
    async with outlived(log, ingest, engine, tmp_path, day) as (loop, mortal):
        before = mortal.asked
        served(log, 32)
        await loop.until_idle()
        assert now(log).stage == LIVE
        engine.say = lambda text: ("billing" if int(text.split()[-1]) % wrong == 1 else TRUTH[text], 0.95)
        served(log, 200)
        policies = await loop.until_idle()
        assert mortal.asked == before
    assert policies[-1] == Policy()
    assert now(log).stage == RETIRED
    assert now(log).reason.startswith(("agreement fell to", "audit refuted parity"))
    assert "holdback" not in kinds(log)


def certified(log: Log, right: int, wrong: int) -> Candidate:
    """Live, with a golden set that it answered so in shadow: "billing" is what it says to all."""
    candidate = known(log)
    parts = (("billing", 1.0, right), ("shipping", 0.0, wrong))
    for answer, verdict, count in (part for part in parts if part[2]):
        for exchange in insert(log, [f"{answer} {n}" for n in range(count)], answer=answer):
            judged(log, candidate, [verdict], exchange=exchange, answer="billing")
    move(log, candidate, CANARY, "proved", share=0.5)
    move(log, now(log), LIVE, "steady")
    return now(log)


async def asked_again(log: Log, engine: Engine, candidate: Candidate, limit: int = 16, share: float = 1.0) -> int:
    with serving(engine.app) as url:
        async with aiohttp.ClientSession() as session:
            return await golden(log, session, candidate, route_to(url), ENDED, share, limit, 4)


async def test_a_set_that_lies_below_the_bar_by_chance_is_no_fall(log: Log, engine: Engine) -> None:
    candidate = certified(log, 40, 10)
    served(log, 200)
    assert await asked_again(log, engine, candidate, 50) == 50
    for _ in range(3):
        await asked_again(log, engine, candidate, 50)
    plain = [row[0] for row in log.query("SELECT verdict FROM verdicts WHERE kind = 'golden' ORDER BY id")]
    assert sum(plain) / len(plain) == 0.8
    assert drifted(plain, 0.95).found  # What plain agreement would have made of it.
    assert not audited(log, candidate).drift.found
    assert not audited(log, candidate).parity.refuted
    assert audited(log, candidate).parity.mean == 1.0


async def test_a_right_answer_more_does_not_make_up_for_one_less(log: Log, engine: Engine) -> None:
    candidate = certified(log, 10, 10)
    engine.say = lambda text: ("shipping", 0.9)
    served(log, 20)
    await asked_again(log, engine, candidate, 20)
    assert standing(log, candidate) == Golden(20, 20, 0.5)


async def test_it_comes_as_often_as_audits_did_and_the_longest_not_asked_comes_first(log: Log, engine: Engine) -> None:
    candidate = certified(log, 6, 0)
    assert await asked_again(log, engine, candidate) == 0
    served(log, 4)
    assert await asked_again(log, engine, candidate, share=0.0) == 0
    assert await asked_again(log, engine, candidate) == 4
    assert await asked_again(log, engine, candidate) == 0
    served(log, 4)
    assert await asked_again(log, engine, candidate) == 4
    counts = log.query("SELECT count(*) FROM verdicts WHERE kind = 'golden' GROUP BY exchange ORDER BY ALL")
    assert counts == [(1,)] * 4 + [(2,)] * 2


async def test_the_set_has_a_size_and_only_answers_of_an_ended_model_call_for_it(log: Log, engine: Engine) -> None:
    candidate = certified(log, SIZE + 1, 0)
    assert standing(log, candidate).exchanges == SIZE
    served(log, 3)
    insert(log, ["?"] * 3, served_by=candidate.id, model="gpt-5")
    assert await asked_again(log, engine, candidate) == 3


async def test_what_it_would_leave_to_the_teacher_now_is_no_verdict(log: Log, engine: Engine) -> None:
    candidate = certified(log, 5, 0)
    engine.say = lambda text: ("shipping", 0.2)
    served(log, 5)
    assert await asked_again(log, engine, candidate) == 5
    assert standing(log, candidate) == Golden(5, 0, None)


async def test_where_the_evaluator_fails_nothing_is_recorded(
    log: Log, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "golden_failing.py").write_text("def judge(request, teacher, other):\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    candidate = known(log, evaluator="golden_failing:judge")
    (exchange,) = insert(log, ["mine?"])
    judged(log, candidate, [1.0], exchange=exchange, answer="shipping")
    served(log, 1)
    with pytest.raises(BadInput, match="golden_failing"):
        await asked_again(log, engine, candidate)
    assert "golden" not in kinds(log)


async def test_a_right_answer_that_comes_later_leaves_golden_verdicts_as_they_are(log: Log, engine: Engine) -> None:
    candidate = certified(log, 1, 0)
    served(log, 1)
    await asked_again(log, engine, candidate)
    (exchange,) = log.query("SELECT exchange FROM verdicts WHERE kind = 'golden'")[0]
    body = json.dumps({"exchange": exchange, "answer": "shipping"})
    told = {"path": "/v1/feedback", "served_by": "stillroom", "request": body, "response": body}
    insert(log, ["said"], answer=None, **told)
    assert score_gold(log, candidate) == 1  # The one of shadow.
    assert score_gold(log, candidate) == 0
    assert standing(log, candidate) == Golden(1, 1, 1.0)
