import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from distiller.dashboard.exchange_view import body_bytes, recorded
from distiller.replaying import CANDIDATE, KIND, NAMED, TEACHER, Replayed, replay, targets
from distiller.settings import Settings
from proxy.errors import BadInput, Refused, Unavailable
from proxy.log import Log
from proxy.replay import create_replay
from proxy.settings import NamedTeacherSettings, TeacherSettings
from proxy.traffic_file import Row
from router.settings import MoneySettings, Price
from tests.logs import migrated
from tests.router.conftest import PATH, TASK, Engine, Hosted, chat, insert, known
from tests.servers import free_port, serving

# As clients write it: not as our own JSON writer would.
BODY = '{ "model" :"gpt-4o",\n "messages": %s , "temperature":0.0, "unknown": [1,2]}'
MONEY = MoneySettings(prices={"gpt-4o": Price(10.0, 20.0), "small-model": Price(1.0, 2.0)})


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = migrated(tmp_path)
    yield log
    log.close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "sk-ours")


def settings_of(home: Path, url: str, **named: NamedTeacherSettings) -> Settings:
    given = {"key_env": "OUR_KEY", "translate": ("anthropic/",), "named": named}
    teacher = TeacherSettings(url=url.removesuffix("/v1"), **given)
    return Settings(home=str(home), teacher=teacher, money=MONEY)


class Wire:
    """Keeps every request's bytes and headers; answers what it is told to."""

    def __init__(self, status: int = 200, **body: Any) -> None:
        self.asked: list[tuple[bytes, dict[str, str]]] = []
        self.status, self.body = status, body
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route(PATH, self.chat, methods=["POST"])

    async def chat(self, request: Request) -> Response:
        self.asked.append((await request.body(), dict(request.headers)))
        return Response(json.dumps(self.body), self.status, media_type="application/json")


SAID = {
    "choices": [{"message": {"content": "shipping"}, "finish_reason": "stop"}], "model": "gpt-4o",
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
}  # fmt: skip


def one(log: Log, **columns: Any) -> dict[str, Any]:
    body = BODY % json.dumps(chat("where is my parcel"))
    given = {"request": body, "request_headers": '[["content-type", "application/json"], ["user-agent", "x"]]'}
    counts = {"prompt_tokens": 1000, "completion_tokens": 50}
    return recorded(log, insert(log, ["x"], **(given | counts | columns))[0])


def asked(log: Log, settings: Settings, row: dict[str, Any], key: str = TEACHER, model: str = "") -> Replayed:
    return replay(log, settings, row, body_bytes(row, "request"), key, model)


def charges(log: Log) -> list[tuple[Any, ...]]:
    return log.query("SELECT kind, task, model, exchange, usd, quantity, unit FROM spend")


def test_the_teacher_gets_the_recorded_bytes_and_is_paid(log: Log, tmp_path: Path) -> None:
    wire, row = Wire(**SAID), one(log)
    with serving(wire.app) as url:
        done = asked(log, settings_of(tmp_path, url), row)
    ((body, headers),) = wire.asked
    assert body == row["request"].encode()
    assert (headers["authorization"], headers["content-type"]) == ("Bearer sk-ours", "application/json")
    assert "x" not in headers.get("user-agent", "")
    assert (done.status, done.answer, done.model, done.problem) == (200, "shipping", "gpt-4o", "")
    assert (done.usd, done.prompt_tokens, done.completion_tokens) == (pytest.approx(0.012), 1000, 100)
    assert charges(log) == [(KIND, TASK, "gpt-4o", row["id"], pytest.approx(0.012), 1.0, "exchange")]
    assert log.query("SELECT prompt_tokens, completion_tokens FROM spend") == [(1000, 100)]
    assert log.query("SELECT count(*) FROM exchanges") == [(1,)]


def test_for_another_model_only_its_name_is_another_one(log: Log, tmp_path: Path) -> None:
    wire, row = Wire(**SAID), one(log)
    with serving(wire.app) as url:
        named = NamedTeacherSettings(url.removesuffix("/v1"), "", "small-model")
        settings = settings_of(tmp_path, url, paris=named)
        first = asked(log, settings, row, f"{NAMED}:paris")
        second = asked(log, settings, row, TEACHER, "own-model")
    expected = row["request"].replace('"gpt-4o"', '"small-model"').encode()
    assert [body for body, _ in wire.asked] == [expected, row["request"].replace('"gpt-4o"', '"own-model"').encode()]
    assert "authorization" not in wire.asked[0][1]
    assert (first.model, first.usd) == ("small-model", pytest.approx(0.0012))
    assert (second.model, second.usd, second.charged) == ("own-model", None, True)
    assert [charge[4] for charge in charges(log)] == [pytest.approx(0.0012), None]


def test_a_stream_is_read_to_its_end_as_it_came(log: Log, tmp_path: Path) -> None:
    row = one(log, request=json.dumps({
        "model": "gpt-4o", "messages": chat("hi"), "stream": True, "stream_options": {"include_usage": True},
    }), stream=True)  # fmt: skip
    app = create_replay([Row(chat("hi"), "shipping", None, "gpt-4o", None)], key="sk-ours", chunk_delay=0.01)
    with serving(app) as url:
        done = asked(log, settings_of(tmp_path, url), row)
    assert (done.stream, done.answer, done.status) == (True, "shipping", 200)
    assert done.said.startswith("data: {")
    assert done.said.endswith("data: [DONE]\n\n")
    assert done.first_ms is not None
    assert 0 < done.first_ms <= done.total_ms
    assert done.usd is not None
    assert (done.pieces > 1, done.usd > 0) == (True, True)


def test_another_model_may_not_be_one_that_is_translated(log: Log, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(Refused, match="litellm translates for anthropic/claude"):
        asked(log, settings, one(log), TEACHER, "anthropic/claude")
    assert charges(log) == []


def test_headers_that_cannot_be_sent_stay_behind(log: Log, tmp_path: Path) -> None:
    wire, row = Wire(**SAID), one(log, request_headers='[["content-type", "text/x\\r\\nx-evil: 1"]]', query="a=b")
    with serving(wire.app) as url:
        assert asked(log, settings_of(tmp_path, url), row).status == 200
    ((_, headers),) = wire.asked
    assert (headers["content-type"], "x-evil" in headers) == ("application/json", False)


def test_what_was_refused_is_shown_and_costs_nothing(log: Log, tmp_path: Path) -> None:
    row = one(log)
    with serving(create_replay([Row(chat("other"), "x", None, "gpt-4o", None)], key="sk-ours")) as url:
        done = asked(log, settings_of(tmp_path, url), row)
    assert (done.status, done.problem, done.charged, done.answer) == (404, "it answered 404", False, None)
    assert "not in the recording" in done.said
    gone = asked(log, settings_of(tmp_path, f"http://127.0.0.1:{free_port()}"), row)
    assert (gone.status, gone.charged, gone.problem[:24]) == (0, False, "it could not be reached:")
    assert charges(log) == []


@pytest.mark.parametrize("fails", ["derive", "inflated"])
def test_what_was_paid_is_charged_whatever_becomes_of_the_answer(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(f"distiller.replaying.{fails}", broken)
    wire, row = Wire(**SAID), one(log)
    with serving(wire.app) as url, pytest.raises(RuntimeError):
        asked(log, settings_of(tmp_path, url), row)
    assert charges(log) == [(KIND, TASK, "gpt-4o", row["id"], None, 1.0, "exchange")]


def test_what_fails_before_anybody_is_asked_costs_nothing(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise Unavailable("the encoding is missing")

    monkeypatch.setattr("distiller.replaying.estimator", missing)
    wire = Wire(**SAID)
    with serving(wire.app) as url, pytest.raises(Unavailable):
        asked(log, settings_of(tmp_path, url), one(log))
    assert (wire.asked, charges(log)) == ([], [])


def test_a_long_answer_is_kept_in_part_and_no_half_characters(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distiller.replaying.SHOWN", 20)
    said = {"choices": [{"message": {"content": "half \ud800"}, "finish_reason": "stop"}], "model": "gpt-4o"}
    wire = Wire(**said)
    with serving(wire.app) as url:
        done = asked(log, settings_of(tmp_path, url), one(log))
    assert (done.answer, len(done.said), done.left_out) == ("half \ufffd", 20, len(json.dumps(said)) - 20)


async def breaking(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
    raise RuntimeError("gone")


@pytest.mark.filterwarnings("ignore")
def test_an_answer_that_broke_off_may_have_been_paid_for(log: Log, tmp_path: Path) -> None:
    row = one(log)
    with serving(breaking) as url:
        done = asked(log, settings_of(tmp_path, url), row)
    assert (done.status, done.charged, done.usd) == (200, True, None)
    assert done.problem
    assert [charge[4] for charge in charges(log)] == [None]


def engine_up(settings: Settings, url: str, *students: str) -> None:
    settings.small_state.parent.mkdir(parents=True, exist_ok=True)
    told = {"state": "up", "url": url.removesuffix("/v1"), "ready": students}
    settings.small_state.write_text(json.dumps(told))


def test_a_student_is_shown_what_it_is_shown_in_live_traffic(log: Log, tmp_path: Path) -> None:
    candidate, row = known(log), one(log)
    engine = Engine(lambda text: ("billing", 0.9))
    settings = settings_of(tmp_path, "http://127.0.0.1:9")
    with serving(engine.app) as url:
        engine_up(settings, url, candidate.id)
        done = asked(log, settings, row, f"{CANDIDATE}:{candidate.id}")
        engine.say = lambda text: ("billing", 0.2)
        unsure = asked(log, settings, row, f"{CANDIDATE}:{candidate.id}")
        strange = one(log, request='{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}')
        other = asked(log, settings, strange, f"{CANDIDATE}:{candidate.id}")
    assert engine.asked[0]["messages"][-1] == {"role": "user", "content": "where is my parcel"}
    assert (done.answer, done.confidence, done.problem) == ("billing", pytest.approx(0.9), "")
    assert (done.charged, done.usd) == (False, 0.0)
    assert (unsure.answer, unsure.problem) == ("billing", "the teacher would answer: unsure")
    assert (other.answer, other.problem) == (None, "the teacher would answer: the request holds more than text")
    assert charges(log) == []


def test_a_rival_is_asked_with_its_own_key_and_paid(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVAL_KEY", "sk-rival")
    rival, row = Hosted(lambda text: "billing", "sk-rival"), one(log)
    with serving(rival.app) as url:
        card = {"rival": "r", "model": "small-model", "url": url, "key_env": "RIVAL_KEY", "labels": [], "static": []}
        known(log, "rival-1", kind="hosted", threshold=None, card=card | {"max_tokens": None})
        done = asked(log, settings_of(tmp_path, "http://127.0.0.1:9"), row, f"{CANDIDATE}:rival-1")
    assert rival.asked == [json.loads(row["request"]) | {"model": "small-model"}]
    assert (done.answer, done.model, done.usd) == ("billing", "small-model", pytest.approx(0.00012))
    assert charges(log)[0][:3] == (KIND, TASK, "rival-1")


def test_what_it_may_cost_is_told_before_and_who_cannot_be_asked(log: Log, tmp_path: Path) -> None:
    known(log)
    card = {"rival": "r", "model": "small-model", "url": "http://127.0.0.1:9/v1", "labels": [], "static": []}
    known(log, "rival-1", kind="hosted", threshold=None, card=card | {"max_tokens": None})
    settings = settings_of(tmp_path, "http://127.0.0.1:9", odd=NamedTeacherSettings("http://127.0.0.1:9"))
    found = {target.key: target for target in targets(log, settings, one(log))}
    assert list(found) == [TEACHER, f"{NAMED}:odd", f"{CANDIDATE}:student-1", f"{CANDIDATE}:rival-1"]
    assert found[TEACHER].usd == pytest.approx(0.011)
    assert found[TEACHER].basis == "1,000 prompt tokens, and 50 if it answers as long as was recorded"
    assert found[f"{CANDIDATE}:rival-1"].usd == pytest.approx(0.0011)
    student = found[f"{CANDIDATE}:student-1"]
    assert (student.why_not, student.usd) == ("it is not loaded", 0.0)
    unknown = {target.key: target for target in targets(log, settings, one(log, model="odd", prompt_tokens=None))}
    assert (unknown[TEACHER].usd, unknown[TEACHER].basis[:6]) == (None, "nobody")
    unpriced = {target.key: target for target in targets(log, settings, one(log, model="odd"))}
    assert "odd has no price" in unpriced[TEACHER].basis
    keyless = Settings(home=str(tmp_path), money=MONEY)
    assert "key_env is not set" in targets(log, keyless, one(log))[0].why_not


@pytest.mark.parametrize(
    ("columns", "key", "error", "said"),
    [
        ({}, "named:nobody", BadInput, "nobody called 'named:nobody'"),
        ({}, "candidate:student-1", Refused, "it is not loaded"),
        ({"path": "/v1/models", "method": "GET"}, TEACHER, Refused, "GET /v1/models asks no model"),
        ({"path": "/v1/embeddings"}, "candidate:student-1", Refused, "chat completions only"),
        ({"request": "no JSON", "model": None}, TEACHER, Refused, "no JSON that names a model"),
        ({"query": "a=b HTTP/1.1\r\nx: y"}, TEACHER, Refused, "the query of its address"),
        ({"model": "anthropic/claude"}, TEACHER, Refused, "litellm translates for its model"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_sent(
    log: Log, tmp_path: Path, columns: dict[str, Any], key: str, error: type[Exception], said: str
) -> None:
    known(log)
    wire = Wire(**SAID)
    with serving(wire.app) as url:
        with pytest.raises(error, match=said):
            asked(log, settings_of(tmp_path, url), one(log, **columns), key, "own-model" if key == TEACHER else "")
    assert (wire.asked, charges(log)) == ([], [])
