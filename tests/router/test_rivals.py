import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp
import openai
import pytest

from proxy.app import create_app
from proxy.errors import BadInput
from proxy.ingest import Ingest
from proxy.log import Log
from proxy.replay import create_replay
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.traffic_file import Row
from router.controller import Controller
from router.decide import Router
from router.ledger import report
from router.lifecycle import publish
from router.policy import PolicyWatcher, load_policy
from router.prices import cost
from router.registry import CANARY, HOSTED, LIVE, RETIRED, SHADOW, Candidate, candidates, move
from router.rivals import ANSWERS, Rivals, charge_answers, enrol, identity, settled
from router.settings import Price, RivalSettings, RouterSettings, TaskSettings
from tests.router.conftest import TASK, Hosted, chat, insert, judged, known, now
from tests.servers import serving

KEY = "sk-rival-5f0c"
PRICES = {"small": Price(1.0, 2.0), "gpt-4o": Price(10.0, 20.0)}
SMALL = 120e-6  # US dollars for 100 + 10 tokens


def label(text: str) -> str:
    return ("billing", "shipping")[len(text) % 2]


def asked(log: Log, count: int, first: int = 0) -> list[str]:
    """Exchanges of the teacher, whose answers alternate."""
    texts = ["x" * n for n in range(first, first + count)]
    return [insert(log, [text], label(text))[0] for text in texts]


def declared(url: str = "http://127.0.0.1:9/v1", **changes: object) -> RivalSettings:
    return replace(RivalSettings((TASK,), "small", url), **changes)  # type: ignore[arg-type]


def settings(**rivals: RivalSettings) -> RouterSettings:
    return RouterSettings(
        canary_shares=(0.5,), canary_exchanges=3, holdback_share=0.0, candidate_timeout=2.0, rivals=rivals
    )


def only(log: Log) -> Candidate:
    (found,) = candidates(log)
    return found


@pytest.fixture
def ingest(log: Log, tmp_path: Path) -> Ingest:
    return Ingest(log, tmp_path / "spool", 7, partial(cost, PRICES))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RIVAL_KEY", KEY)
    return KEY


@pytest.mark.usefixtures("ingest")
def test_a_rival_waits_for_traffic_and_is_registered_once(log: Log) -> None:
    rivals = Rivals(log, settings(cheap=declared(key_env="")), judged=False)
    asked(log, ANSWERS - 1)
    rivals.look()
    assert candidates(log) == []
    asked(log, 1, ANSWERS)
    for _ in range(2):
        rivals.look()
    found = only(log)
    assert (found.kind, found.stage, found.evaluator, found.threshold) == (HOSTED, SHADOW, "label", None)
    assert found.card["labels"] == ["billing", "shipping"]
    assert found.id == identity("cheap", TASK, declared())


@pytest.mark.usefixtures("ingest")
def test_a_changed_declaration_is_a_new_candidate_with_its_own_share_of_alpha(log: Log) -> None:
    asked(log, ANSWERS)
    Rivals(log, settings(cheap=declared(), other=declared(model="o")), judged=False).look()
    Rivals(log, settings(cheap=declared(model="smaller"), other=declared(model="o")), judged=False).look()
    stages = [(one.card["rival"], one.card["model"], one.stage, one.ordinal) for one in candidates(log)]
    assert stages == [
        ("cheap", "small", RETIRED, 1), ("other", "o", SHADOW, 2), ("cheap", "smaller", SHADOW, 3)
    ]  # fmt: skip
    assert [one.alpha for one in candidates(log)] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12])


@pytest.mark.usefixtures("ingest")
def test_rivals_and_students_are_in_shadow_side_by_side(log: Log) -> None:
    asked(log, ANSWERS)
    known(log)
    Rivals(log, settings(cheap=declared()), judged=False).look()
    known(log, "student-2")
    stages = {one.card.get("rival", one.id): one.stage for one in candidates(log)}
    assert stages == {"student-1": RETIRED, "cheap": SHADOW, "student-2": SHADOW}


@pytest.mark.usefixtures("ingest")
def test_what_is_no_longer_declared_is_retired(log: Log) -> None:
    asked(log, ANSWERS)
    Rivals(log, settings(cheap=declared()), judged=False).look()
    move(log, only(log), LIVE, "for the test", {"for": "the test"})
    Rivals(log, settings(cheap=declared(tasks=("another",))), judged=False).look()
    assert (only(log).stage, only(log).reason) == (RETIRED, "no longer declared in the settings")


async def test_who_is_no_longer_declared_answers_nobody(log: Log, ingest: Ingest, tmp_path: Path) -> None:
    asked(log, ANSWERS)
    Rivals(log, settings(cheap=declared()), judged=False).look()
    move(log, only(log), LIVE, "for the test", {"for": "the test"})
    policy = tmp_path / "policy.json"
    publish(log, settings(), {}, policy)
    assert load_policy(policy).routes[TASK].candidate == only(log).id
    async with aiohttp.ClientSession() as session:
        await Controller(log, ingest, settings(), policy, dict).round(session, None)
    assert load_policy(policy).routes == {}


@pytest.mark.usefixtures("ingest")
def test_free_text_is_for_the_judge_where_there_is_one(log: Log) -> None:
    for n in range(ANSWERS):
        insert(log, ["why?"], f"Because of reason {n}, and of others that take long to tell: " + "x" * 60)
    assert enrol(log, "a", TASK, declared(), settings(), judged=False)
    assert enrol(log, "b", TASK, declared(), settings(), judged=True)
    assert [one.evaluator for one in candidates(log)] == ["exact", "judge"]


@pytest.mark.usefixtures("ingest")
def test_one_that_cannot_be_registered_is_told_once_and_keeps_nobody_waiting(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    asked(log, ANSWERS)
    insert(log, ["x"] * ANSWERS, None, task="calls", tool_calls='[{"function": {"name": "f", "arguments": "{}"}}]')
    odd = declared(tasks=("calls", TASK))
    rivals = Rivals(log, replace(settings(odd=odd), tasks={TASK: TaskSettings(sets=("a",))}), judged=False)
    for _ in range(2):
        rivals.look()
    assert candidates(log) == []
    assert caplog.text.count("is not registered: the task calls tools") == 1
    assert caplog.text.count('is not registered: sets are for the evaluator "json"') == 1


def test_a_key_that_is_not_there_is_said_at_the_start(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIVAL_KEY", raising=False)
    with pytest.raises(BadInput, match=r"router\.rivals\.cheap\.key_env names RIVAL_KEY, which is not set"):
        Rivals(log, settings(cheap=declared(key_env="RIVAL_KEY")), judged=False)


class Stage:
    """A controller, a hosted model and a teacher, with a declared rival."""

    def __init__(self, stack: ExitStack, log: Log, ingest: Ingest, home: Path, model: str = "small") -> None:
        self.hosted = Hosted(lambda text: label(text).title(), KEY)
        self.log, self.home = log, home
        url = stack.enter_context(serving(self.hosted.app))
        rival = declared(url, model=model, key_env="RIVAL_KEY")
        self.controller = Controller(log, ingest, settings(cheap=rival), home / "policy.json", dict)

    async def rounds(self) -> None:
        async with aiohttp.ClientSession() as session:
            while await self.controller.round(session, None):
                pass

    async def to_canary(self) -> Candidate:
        asked(self.log, ANSWERS)
        await self.rounds()
        asked(self.log, 130, ANSWERS)
        await self.rounds()
        return only(self.log)


@pytest.mark.usefixtures("key")
async def test_a_rival_is_proved_promoted_and_answers_clients_and_its_key_is_nowhere_on_disk(
    log: Log, ingest: Ingest, tmp_path: Path
) -> None:
    replay = create_replay([Row(tuple(chat("mine?")), "the teacher", None, "gpt-4o", None)])
    with ExitStack() as stack:
        stage = Stage(stack, log, ingest, tmp_path)
        assert (await stage.to_canary()).stage == CANARY
        compared = len(stage.hosted.asked)
        assert stage.hosted.asked[0] == {"model": "small", "messages": chat("x" * ANSWERS)}
        rows = log.query("SELECT count(*), count(usd), sum(usd) FROM spend WHERE kind = 'shadow'")
        assert rows == [(compared, compared, pytest.approx(compared * SMALL))]
        move(log, only(log), LIVE, "for the test")
        stage.controller._publish()
        router = Router(PolicyWatcher(tmp_path / "policy.json"))
        app = create_app(
            ProxySettings(), TeacherSettings(url=stack.enter_context(serving(replay)).removesuffix("/v1")),
            SpoolSettings(rotate_seconds=0.05), tmp_path / "spool", router.decide, running=router.running,
        )  # fmt: skip
        answers = await asyncio.to_thread(asking, app, stage.hosted)
        await stage.rounds()
    assert answers == ["Shipping", "the teacher"]
    assert stage.hosted.asked[compared]["messages"] == chat("mine?")
    served = log.query("SELECT served_by, fallback FROM exchanges WHERE reason = 'live' ORDER BY id")
    assert served == [(only(log).id, None), ("teacher", "provider unavailable: HTTP 503")]
    assert log.query("SELECT model, usd FROM spend WHERE kind = 'candidate'") == [(only(log).id, pytest.approx(SMALL))]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
    assert KEY not in repr(load_policy(tmp_path / "policy.json"))
    assert load_policy(tmp_path / "policy.json").routes[TASK].key_env == "RIVAL_KEY"


def asking(app: object, hosted: Hosted) -> Sequence[str | None]:
    """What a client is told, the second time while the hosted model errs."""
    told = []
    with serving(app) as url, openai.OpenAI(base_url=url, api_key="sk-client", max_retries=0) as client:
        for status in (200, 503):
            hosted.status = status
            said = client.chat.completions.create(
                model="gpt-4o", messages=chat("mine?"), extra_headers={"x-stillroom-task": TASK}  # type: ignore[arg-type]
            )  # fmt: skip
            told.append(said.choices[0].message.content)
    return told


@pytest.mark.usefixtures("key")
async def test_an_unpriced_rival_is_proved_too_and_its_money_is_unknown_not_zero(
    log: Log, ingest: Ingest, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        assert (await Stage(stack, log, ingest, tmp_path, model="no-price").to_canary()).stage == CANARY
    assert log.query("SELECT count(usd), count(*) > 50 FROM spend WHERE kind = 'shadow'") == [(0, True)]
    shadowed = report(log).unpriced
    insert(log, ["x"], served_by=only(log).id, prompt_tokens=5, completion_tokens=1)
    charge_answers(log)
    found = report(log)
    assert (found.unpriced, found.hosted_usd, found.net_usd) == (shadowed + 1, None, None)


@pytest.mark.usefixtures("key")
async def test_what_a_provider_has_no_answer_to_is_compared_later(log: Log, ingest: Ingest, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, log, ingest, tmp_path)
        asked(log, ANSWERS)
        await stage.rounds()
        asked(log, 3, ANSWERS)
        stage.hosted.status = 429
        await stage.rounds()
        assert log.query("SELECT count(*) FROM verdicts") == [(0,)]
        stage.hosted.status = 400
        asked(log, 1, ANSWERS)  # Something new: else it is asked again after a while only.
        await stage.rounds()
    rows = log.query("SELECT covered, error, count(*) FROM verdicts GROUP BY ALL")
    assert rows == [(False, "candidate answered 400", 4)]
    assert log.query("SELECT count(*) FROM spend") == [(0,)]


@pytest.mark.usefixtures("key")
async def test_an_answer_that_was_cut_off_is_paid_for_and_not_covered(log: Log, ingest: Ingest, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, log, ingest, tmp_path)
        asked(log, ANSWERS)
        await stage.rounds()
        asked(log, 1, ANSWERS)
        stage.hosted.finish = "length"
        await stage.rounds()
    assert log.query("SELECT covered, error FROM verdicts") == [(False, "candidate stopped with length")]
    assert log.query("SELECT kind, usd FROM spend") == [("shadow", pytest.approx(SMALL))]


@pytest.mark.usefixtures("ingest")
def test_answers_to_clients_are_charged_once_and_what_fell_back_is_unpriced(log: Log) -> None:
    asked(log, ANSWERS)
    enrol(log, "cheap", TASK, declared(), settings(), judged=False)
    rival = only(log)
    insert(log, ["before"], fallback="candidate timed out")
    move(log, rival, LIVE, "for the test", {"for": "the test"})
    insert(log, ["x", "y"], served_by=rival.id, prompt_tokens=100, completion_tokens=10, cached_tokens=0)
    insert(log, ["z"], fallback="answer breaks the format")
    insert(log, ["z"], fallback="provider unavailable: HTTP 503")
    insert(log, ["z"], task="another", fallback="candidate timed out")
    insert(log, ["z"], served_by="student-1")
    for _ in range(2):
        charge_answers(log)
    rows = log.query("SELECT kind, model, count(*), sum(usd) FROM spend GROUP BY ALL ORDER BY kind")
    assert rows == [("candidate", rival.id, 2, pytest.approx(2 * SMALL)), ("fallback", rival.id, 1, None)]
    line = next(one for one in report(log).tasks if one.task == TASK)
    assert (line.hosted_usd, line.unpriced) == (pytest.approx(2 * SMALL), 1)


@pytest.mark.usefixtures("ingest")
def test_a_rival_that_passes_and_waits_is_asked_no_more(log: Log) -> None:
    asked(log, ANSWERS)
    enrol(log, "cheap", TASK, declared(), settings(), judged=False)
    assert not settled(log, only(log), 0.1)
    judged(log, only(log), [1.0] * 300)
    assert settled(log, only(log), 0.1)
    judged(log, known(log), [1.0] * 300)
    assert not settled(log, now(log), 0.1)
    assert json.dumps(only_rival(log).card).count("RIVAL_KEY") == 0


def only_rival(log: Log) -> Candidate:
    (found,) = [one for one in candidates(log) if one.kind == HOSTED]
    return found
