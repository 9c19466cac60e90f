import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from proxy.errors import Unavailable
from proxy.exchange import Exchange
from proxy.feedback import FEEDBACK, STILLROOM, respond
from proxy.ids import ulid
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.replay import create_replay
from proxy.settings import TeacherSettings
from proxy.spool import SpoolWriter
from proxy.teachers import Teachers, connect_teachers
from proxy.traffic_file import Row
from router.controller import Controller, only_one
from router.judge import Judge, Message, Spoken
from router.judging import judges_of
from router.lifecycle import publish
from router.policy import Policy, load_policy
from router.registry import CANARY, LIVE, RETIRED, SHADOW, certificate_of, move
from router.settings import RouterSettings
from router.verdicts import SCORE
from tests.judges import Judges
from tests.router.conftest import PATH, TASK, Engine, chat, insert, known, now
from tests.servers import serving

SETTINGS = RouterSettings(
    canary_shares=(0.5,), canary_exchanges=3, audit_share=1.0, ceiling_share=0.5, poll_seconds=0.01
)
RECORDED = [Row(tuple(chat(f"question {n}")), ("billing", "shipping")[n % 2], None, "gpt-4o", None) for n in range(130)]
TRUTH = {row.messages[-1]["content"]: row.answer or "" for row in RECORDED}


@dataclass
class Loop:
    """A controller with everything around it, driven round by round."""

    controller: Controller
    log: Log
    spool: Path
    policy: Path
    engine: Engine
    served: dict[str, str]
    teacher: Teachers
    session: aiohttp.ClientSession

    async def until_idle(self) -> list[Policy]:
        """Rounds until nothing is left to compare; the policies that were published after each."""
        policies = []
        busy = True
        while busy:
            busy = await self.controller.round(self.session, self.teacher)
            policies.append(publish(self.log, SETTINGS, self.served, self.policy))
        return policies

    def teacher_answers(self) -> None:
        """All recorded exchanges pass through the proxy's spool, answered by the teacher."""
        writer = SpoolWriter(self.spool, 1 << 30, 3600)
        for text, label in TRUTH.items():
            request = json.dumps({"model": "gpt-4o", "messages": chat(text)}).encode()
            choice = {"index": 0, "message": {"role": "assistant", "content": label}, "finish_reason": "stop"}
            response = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode()
            writer.append(
                Exchange(
                    ulid(), 1_800_000_000.0, "POST", PATH, task=TASK, request=request, status=200, response=response
                ).line(Redactor(SECRETS_ONLY))
            )
        writer.rotate()

    def somebody_says(self, exchange: str, right: str) -> None:
        """Feedback passes through the proxy's spool."""
        body = json.dumps({"exchange": exchange, "answer": right}).encode()
        status, receipt = respond("POST", ulid(), body, True)
        told = Exchange(ulid(), time.time(), "POST", FEEDBACK, request=body, status=status, response=receipt)
        told.served_by = STILLROOM
        writer = SpoolWriter(self.spool, 1 << 30, 3600)
        writer.append(told.line(Redactor(SECRETS_ONLY)))
        writer.rotate()


@pytest.fixture(scope="module")
def replay() -> Iterator[str]:
    with serving(create_replay(RECORDED)) as url:
        yield url


@asynccontextmanager
async def looping(log: Log, ingest: Ingest, engine: Engine, replay: str, home: Path) -> AsyncIterator[Loop]:
    with ExitStack() as stack:
        url = stack.enter_context(serving(engine.app)).removesuffix("/v1")
        served = {"student-1": url, "student-2": url}
        controller = Controller(log, ingest, SETTINGS, home / "policy.json", lambda: served)
        teacher = connect_teachers(TeacherSettings(url=replay))
        async with aiohttp.ClientSession() as session:
            yield Loop(controller, log, home / "spool", home / "policy.json", engine, served, teacher, session)
        teacher.close()


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.02)


async def test_a_right_candidate_goes_from_shadow_to_live_and_a_later_fault_takes_it_away(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    engine.say = lambda text: (TRUTH[text], 0.95)
    candidate = known(log)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        policies = await loop.until_idle()
        assert policies[0] == Policy()
        assert policies[-1].routes[TASK].share == 0.5
        assert now(log).stage == CANARY
        proof = certificate_of(log, candidate.id)
        assert proof is not None
        assert proof["parity"]["lower"] > 0.95
        assert proof["parity"]["ceiling"] == 1.0
        assert 0 < proof["parity"]["measured"] < proof["parity"]["n"]
        insert(log, ["question 1"] * 3, answer="shipping", served_by=candidate.id)
        await loop.until_idle()
        assert now(log).stage == LIVE
        assert load_policy(loop.policy).routes[TASK].share == 1.0
        assert log.query("SELECT count(*), sum(verdict) FROM verdicts WHERE kind = 'audit'") == [(3, 3.0)]
        insert(log, ["question 2"] * 60, answer="shipping", served_by=candidate.id)  # Wrong: the teacher says billing.
        assert (await loop.until_idle())[-1] == Policy()
    assert (now(log).stage, now(log).reason[:13]) == (RETIRED, "audit refuted")
    stages = [row[0] for row in log.query("SELECT stage_to FROM transitions ORDER BY id")]
    assert stages == [SHADOW, CANARY, LIVE, RETIRED]


async def test_a_candidate_that_is_right_where_the_teacher_was_not_is_certified_once_somebody_said_so(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    engine.say = lambda text: ("shipping" if text == "question 0" else TRUTH[text], 0.95)  # The teacher: billing.
    known(log)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        await loop.controller.round(loop.session, loop.teacher)
        ((exchange,),) = log.query("SELECT exchange FROM verdicts WHERE verdict = 0")
        loop.somebody_says(exchange, "Shipping.")
        await loop.until_idle()
    rows = log.query(f"SELECT verdict, {SCORE}, candidate_right, teacher_right FROM verdicts WHERE gold IS NOT NULL")
    assert rows == [(0.0, 1.0, 1.0, 0.0)]
    assert log.query(f"SELECT count(*) FROM verdicts WHERE {SCORE} < 1") == [(0,)]
    assert now(log).stage == CANARY


async def test_a_wrong_candidate_ends_retired_and_never_got_a_route(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    engine.say = lambda text: ("billing", 0.95)  # Right on every other exchange.
    known(log)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        policies = await loop.until_idle()
    assert all(policy == Policy() for policy in policies)
    assert (now(log).stage, certificate_of(log, "student-1")) == (RETIRED, None)
    assert now(log).reason.startswith("parity refuted")


async def test_a_candidate_that_is_unsure_where_it_is_wrong_is_certified_for_the_rest(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    engine.say = lambda text: ("billing", 0.95 if TRUTH[text] == "billing" else 0.1)
    known(log, margin=0.2)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        await loop.until_idle()
    proof = certificate_of(log, "student-1")
    assert proof is not None
    assert (proof["parity"]["mean"], proof["coverage"]) == (1.0, pytest.approx(0.5, abs=0.1))


async def test_a_candidate_that_is_not_served_is_not_judged(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    known(log)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.served.clear()
        loop.teacher_answers()
        assert not await loop.controller.round(loop.session, loop.teacher)
    assert log.query("SELECT count(*) FROM exchanges") == [(130,)]
    assert log.query("SELECT count(*) FROM verdicts") == [(0,)]


async def test_what_a_live_candidate_left_to_the_teacher_is_not_held_against_its_coverage(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    candidate = known(log)
    log.query("UPDATE transitions SET stage_to = 'live' WHERE candidate = ?", [candidate.id])
    insert(log, ["question 1"], fallback="unsure")
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        await loop.until_idle()
    assert engine.asked == []


async def test_what_is_held_back_takes_a_live_candidate_away_without_any_teacher_to_audit_with(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    move(log, known(log), LIVE, "for the test", {"for": "the test"})
    engine.say = lambda text: ("shipping", 0.95)
    insert(log, ["question 2"] * 60, reason="live: held back")
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        while await loop.controller.round(loop.session, None):
            pass
    assert (now(log).stage, now(log).reason[:13]) == (RETIRED, "audit refuted")


async def test_a_changed_template_is_told_once(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    move(log, known(log), LIVE, "for the test", {"for": "the test"})
    insert(log, ["x"] * 20, reason="live: template changed")
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        for _ in range(2):
            await loop.controller.round(loop.session, None)
            loop.controller.tell_changes()
    assert caplog.text.count("its instructions changed on") == 1


async def test_it_runs_without_a_teacher_and_ingests_to_the_last(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    engine.say = lambda text: (TRUTH[text], 0.95)
    known(log)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        stop = asyncio.Event()
        running = asyncio.create_task(loop.controller.run(stop, None))
        await eventually(lambda: TASK in load_policy(loop.policy).routes)
        stop.set()
        loop.teacher_answers()
        await running
    assert log.query("SELECT count(*) FROM exchanges") == [(260,)]


async def test_a_round_that_fails_is_tried_again(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.spool.write_text("in the way of the folder")
        stop = asyncio.Event()
        running = asyncio.create_task(loop.controller.run(stop, None))
        await eventually(lambda: "round failed, trying again" in caplog.text)
        loop.spool.unlink()
        loop.teacher_answers()
        await eventually(lambda: log.query("SELECT count(*) FROM exchanges") == [(130,)])
        stop.set()
        await running


async def test_a_stop_does_not_wait_for_the_comparisons_under_way(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    engine.delay = 5.0
    known(log)
    stop = asyncio.Event()
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        running = asyncio.create_task(loop.controller.run(stop, loop.teacher))
        await eventually(lambda: len(engine.asked) > 0)
        stop.set()
        await running
        assert log.query("SELECT count(*) FROM verdicts") == [(0,)]
        assert log.query("SELECT count(*) FROM exchanges") == [(len(RECORDED),)]


async def test_an_evaluator_that_is_gone_stops_its_own_task_only(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known(log, "student-2", task="a task before", evaluator="gone_since:judge")
    known(log)
    engine.say = lambda text: (TRUTH[text], 0.95)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        loop.teacher_answers()
        assert await loop.controller.round(loop.session, loop.teacher)
    assert log.query("SELECT DISTINCT candidate FROM verdicts") == [("student-1",)]
    assert "student-2 of task a task before is not compared: evaluator gone_since:judge" in caplog.text


async def test_guardrails_need_no_evaluator(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path
) -> None:
    candidate = known(log, evaluator="gone_since:judge")
    move(log, candidate, CANARY, "for the test", {"for": "the test"}, 0.5)
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        insert(log, ["question 1"] * 4, fallback="candidate timed out")
        await loop.controller.round(loop.session, loop.teacher)
    assert (now(log).stage, now(log).reason[:6]) == (RETIRED, "4 of t")


async def test_a_candidate_is_looked_at_where_something_is_new(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known(log, evaluator="gone_since:judge")
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        for looks, texts in enumerate((["question 1"], [], [], ["question 2"]), 1):
            if texts:
                insert(log, texts)
            await loop.controller.round(loop.session, loop.teacher)
            assert caplog.text.count("is not compared") == (1 if looks < 4 else 2)


def test_there_is_one_controller_per_home(tmp_path: Path) -> None:
    with only_one(tmp_path / "home"):
        with pytest.raises(Unavailable, match="another controller works on"), only_one(tmp_path / "home"):
            pass
        with only_one(tmp_path / "other"):
            pass
    with only_one(tmp_path / "home"):
        pass


@pytest.mark.parametrize(("way", "stage"), [("perfect", CANARY), ("always-a", SHADOW)])
async def test_what_a_judge_has_to_score_waits_for_one_that_is_fit(
    log: Log, ingest: Ingest, engine: Engine, replay: str, tmp_path: Path, way: str, stage: str
) -> None:
    judges = Judges(TRUTH)

    async def ask(messages: Sequence[Message]) -> Spoken:
        return Spoken(judges.say(way, [dict(message) for message in messages]), 0.5)

    engine.say = lambda text: (TRUTH[text].title(), 0.95)
    known(log, evaluator="judge")
    async with looping(log, ingest, engine, replay, tmp_path) as loop:
        judge = Judge(f"test/{way}", ask)
        loop.controller = Controller(log, ingest, SETTINGS, loop.policy, lambda: loop.served, judge=judge)
        loop.teacher_answers()
        await loop.until_idle()
    assert now(log).stage == stage
    verdicts = log.query("SELECT count(*) > 0, count(*) FILTER (verdict < 1) FROM verdicts")
    assert verdicts == [(way == "perfect", 0)]
    assert judges_of(log, "student-1") == (["test/perfect"] if way == "perfect" else [])
    assert log.query("SELECT count(*) FROM judges") == [(1,)]
