"""A student whose first tokens decide, on a real engine's wire and behind the real relay."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from proxy.app import create_app
from proxy.deciding import CandidateFailed
from proxy.derive import CHAT, derive
from proxy.log import Log
from proxy.replay import create_replay
from proxy.settings import ProxySettings, SpoolSettings, TeacherSettings
from proxy.traffic_file import Row
from router.candidates import SHAPE_ERRORS
from router.decide import Router
from router.early import TOO_SLOW, _step
from router.lifecycle import route
from router.policy import Policy, PolicyWatcher, save_policy
from router.settings import RouterSettings, TaskSettings
from router.shadow import shadow
from tests.proxies import Proxy
from tests.router.conftest import PATH, TASK, Engine, chat, insert, known, route_to
from tests.servers import eventually, serving

TEXT = "where is my invoice?"
TEACHER = "the teacher's answer"
# Tokens of the engine's answer with their probabilities, end of turn included.
SURE = (("bill", 0.9), ("ing and ", 0.5), ("more", 0.5), ("", 0.9))


class Flowing:
    """Streams as vLLM does, one token an event; after `pause_at` tokens it waits for `go`, then may `die`."""

    def __init__(self, tokens: tuple[tuple[str, float], ...] = SURE) -> None:
        self.tokens, self.pause_at, self.die = tokens, len(tokens), False
        self.status, self.finish, self.odd = 200, "stop", b""
        self.go, self.left, self.asked = threading.Event(), threading.Event(), list[dict[str, Any]]()
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route(PATH, self.chat, methods=["POST"])

    async def chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        if self.status != 200:
            return Response(b"{}", self.status)
        return StreamingResponse(self.events(self.asked[-1]), media_type="text/event-stream")

    async def events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        shown = self.tokens[: body["max_tokens"]]
        finish = self.finish if len(shown) == len(self.tokens) else "length"
        try:
            yield _event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
            for place, (text, probability) in enumerate(shown):
                if place == self.pause_at:
                    while not self.go.is_set():
                        await asyncio.sleep(0.01)
                    if self.odd:
                        yield self.odd
                    if self.die:
                        return
                logprobs = {"content": [{"token": text, "logprob": math.log(probability)}]}
                last = finish if place == len(shown) - 1 else None
                yield _event({"delta": {"content": text}, "logprobs": logprobs, "finish_reason": last})
            usage = {"prompt_tokens": 9, "completion_tokens": len(shown), "total_tokens": 9 + len(shown)}
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        finally:
            self.left.set()


def _event(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


@pytest.fixture
def engine() -> Iterator[Flowing]:
    made = Flowing()
    yield made
    made.go.set()


@contextmanager
def routed(engine: Flowing, folder: Path, **route: Any) -> Iterator[Proxy]:
    """The real relay and router, a replayed teacher behind them, and the engine as the task's student."""
    with serving(engine.app) as url:
        given = {"first_tokens": 1, "threshold": 0.8, "extra_lines": None} | route
        save_policy(Policy({TASK: route_to(url, **given)}), folder / "policy.json")
        one = Router(PolicyWatcher(folder / "policy.json"))
        row = Row(tuple(chat(TEXT)), TEACHER, None, "gpt-4o", None)
        with serving(create_replay((row,))) as teacher:
            app = create_app(
                ProxySettings(), TeacherSettings(url=teacher), SpoolSettings(rotate_seconds=0.05), folder / "spool",
                one.decide, running=one.running,
            )  # fmt: skip
            with serving(app) as proxy:
                yield Proxy(proxy, folder / "spool")


def stream(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="gpt-4o",
        messages=chat(TEXT),
        stream=True,
        extra_headers={"x-stillroom-task": TASK},
        **fields,  # type: ignore[arg-type]
    )


def text_of(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_who_streams_has_the_first_tokens_before_the_engine_is_done(engine: Flowing, tmp_path: Path) -> None:
    engine.pause_at = 1
    with routed(engine, tmp_path) as proxy, proxy.client() as client:
        chunks = iter(stream(client))
        role, first = next(chunks), next(chunks)
        assert (role.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "bill")
        assert not engine.left.is_set()
        engine.go.set()
        rest = list(chunks)
    assert text_of(rest) == "ing and more"
    assert [chunk.choices[0].finish_reason for chunk in rest] == [None, None, "stop"]
    (record,) = proxy.records()
    assert (record["served_by"], record["partial"], record["stream"], record["status"]) == (
        "student-1",
        False,
        True,
        200,
    )
    assert record["confidence"] == pytest.approx(0.9)
    assert record["first_byte_ms"] < record["latency_ms"]
    assert record["response"].endswith("data: [DONE]\n\n")
    assert record["response_bytes"] == len(record["response"].encode())
    (asked,) = engine.asked
    assert (asked["stream"], asked["logprobs"], asked["max_tokens"]) == (True, True, 16)


def test_the_sdk_reads_the_usage_of_such_a_stream_and_so_does_the_log(engine: Flowing, tmp_path: Path) -> None:
    with routed(engine, tmp_path) as proxy, proxy.client() as client:
        *others, last = stream(client, stream_options={"include_usage": True})
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 9, 4)
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in others)
    (record,) = proxy.records()
    read = derive(CHAT, None, record["request"], 200, True, record["response"])
    assert (read.answer, read.finish_reason, read.completion_tokens) == ("billing and more", "stop", 4)


def test_what_is_recorded_is_what_went_out(engine: Flowing, tmp_path: Path) -> None:
    body = {"model": "gpt-4o", "messages": chat(TEXT), "stream": True}
    with routed(engine, tmp_path) as proxy:
        sent = httpx.post(f"{proxy.url}/chat/completions", json=body, headers={"x-stillroom-task": TASK})
        assert [record["response"] for record in proxy.records()] in ([], [sent.text])
    assert sent.headers["x-stillroom-served-by"] == "student-1"
    assert sent.headers["content-type"].startswith("text/event-stream")
    assert [record["response"] for record in proxy.records()] == [sent.text]


@pytest.mark.parametrize(("tokens", "served_by"), [(1, "student-1"), (2, "teacher"), (0, "teacher")])
def test_only_the_first_tokens_decide(tokens: int, served_by: str, engine: Flowing, tmp_path: Path) -> None:
    """Their joint probability is 0.9, 0.45 and less; with 0 the engine's stream is not even asked for."""
    with routed(engine, tmp_path, first_tokens=tokens) as proxy, proxy.client() as client:
        said = text_of(stream(client))
    (record,) = proxy.records()
    assert (record["served_by"], said == TEACHER) == (served_by, served_by == "teacher")
    assert engine.asked[0].get("stream", False) == (tokens > 0)
    if tokens == 2:
        assert record["fallback"] == "unsure"
        assert record["confidence"] == pytest.approx(0.45)


def test_an_unsure_student_is_asked_nothing_more(engine: Flowing, tmp_path: Path) -> None:
    engine.pause_at = 1
    with routed(engine, tmp_path, threshold=0.95) as proxy, proxy.client() as client:
        assert text_of(stream(client)) == TEACHER
        assert engine.left.wait(20)
    (record,) = proxy.records()
    assert (record["served_by"], record["fallback"], record["partial"]) == ("teacher", "unsure", False)
    assert "bill" not in record["response"]


def test_who_waited_long_enough_gets_the_teacher(engine: Flowing, tmp_path: Path) -> None:
    engine.pause_at = 0
    with routed(engine, tmp_path, hold=0.2) as proxy, proxy.client() as client:
        assert text_of(stream(client)) == TEACHER
        assert engine.left.wait(20)
    (record,) = proxy.records()
    assert (record["served_by"], record["fallback"]) == ("teacher", TOO_SLOW)


def test_the_hold_is_for_the_first_tokens_only(engine: Flowing, tmp_path: Path) -> None:
    engine.pause_at = 1
    with routed(engine, tmp_path, hold=0.3) as proxy, proxy.client() as client:
        chunks = iter(stream(client))
        next(chunks)
        threading.Timer(0.8, engine.go.set).start()
        assert text_of(chunks) == "billing and more"
    assert proxy.records()[0]["partial"] is False


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        (b"", "candidate unreachable"),
        (b"data: {nope\n\n", "candidate's answer is not"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "candidate's answer is not"),
        (b'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\n', "candidate stopped with abort"),
        (b"data: [DONE]\n\n", "candidate's answer is not"),
        (b'data: {"choices": [], "usage": {}}\n\n', "candidate's answer is not"),
    ],
)
def test_an_engine_that_dies_midway_ends_in_an_error_event_and_no_done(
    odd: bytes, error: str, engine: Flowing, tmp_path: Path
) -> None:
    engine.pause_at, engine.die, engine.odd = 2, True, odd
    engine.go.set()
    got = []
    with routed(engine, tmp_path) as proxy, proxy.client() as client:
        with pytest.raises(openai.APIError, match="broke off"):
            got.extend(stream(client))
    assert text_of(got) == "billing and "
    (record,) = proxy.records()
    assert (record["partial"], record["served_by"], record["status"]) == (True, "student-1", 200)
    assert record["error"].startswith(error)
    assert derive(CHAT, None, record["request"], 200, True, record["response"]).answer == "billing and "
    assert "[DONE]" not in record["response"]


def test_a_client_that_leaves_ends_the_engines_work(engine: Flowing, tmp_path: Path) -> None:
    engine.pause_at = 2
    with routed(engine, tmp_path, at_once=1) as proxy, proxy.client() as client:
        answer = stream(client)
        next(iter(answer))
        assert not engine.left.is_set()
        answer.close()
        assert engine.left.wait(20)
        (record,) = eventually(proxy.records)
        engine.go.set()
        assert text_of(stream(client)) == "billing and more"  # And the candidate may be asked again.
    assert (record["partial"], record["error"], record["served_by"]) == (True, "client hung up", "student-1")


def test_a_candidate_is_busy_until_its_answer_is_out(engine: Flowing, tmp_path: Path) -> None:
    engine.pause_at = 1
    with routed(engine, tmp_path, at_once=1) as proxy, proxy.client() as client:
        chunks = iter(stream(client))
        next(chunks)
        assert text_of(stream(client)) == TEACHER
        engine.go.set()
        list(chunks)
        assert eventually(lambda: text_of(stream(client)) != TEACHER)
    assert "live: candidate busy" in {record["reason"] for record in proxy.records()}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_clients_limit_is_kept_and_the_answer_says_so(name: str, engine: Flowing, tmp_path: Path) -> None:
    with routed(engine, tmp_path) as proxy, proxy.client() as client:
        chunks = list(stream(client, **{name: 2}))
    assert text_of(chunks) == "billing and "
    assert chunks[-1].choices[0].finish_reason == "length"
    assert engine.asked[0]["max_tokens"] == 2
    assert proxy.records()[0]["served_by"] == "student-1"


def test_a_limit_below_the_tokens_that_decide_is_the_teachers(engine: Flowing, tmp_path: Path) -> None:
    """One token is surer than the two that were compared."""
    with routed(engine, tmp_path, first_tokens=2) as proxy, proxy.client() as client:
        assert text_of(stream(client, max_tokens=1)) == TEACHER
    assert proxy.records()[0]["fallback"] == "answer is longer than the client allows"


def test_an_answer_with_fewer_tokens_is_sure_of_those(tmp_path: Path) -> None:
    with routed(Flowing(SURE[:1]), tmp_path, first_tokens=8) as proxy, proxy.client() as client:
        assert text_of(stream(client)) == "bill"
    assert proxy.records()[0]["confidence"] == pytest.approx(0.9)


def test_neither_format_nor_a_cut_keeps_an_answer_back(tmp_path: Path) -> None:
    """The task's labels know no such answer."""
    engine = Flowing((("anything", 0.9), (" else", 0.9)))
    engine.finish = "length"
    with routed(engine, tmp_path) as proxy, proxy.client() as client:
        chunks = list(stream(client))
    assert text_of(chunks) == "anything else"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert proxy.records()[0]["fallback"] is None


@pytest.mark.parametrize(
    ("status", "said"), [(400, "candidate answered 400"), (500, "candidate unreachable: HTTP 500")]
)
def test_an_engine_that_refuses_is_a_failure(status: int, said: str, engine: Flowing, tmp_path: Path) -> None:
    engine.status = status
    with routed(engine, tmp_path) as proxy, proxy.client() as client:
        assert text_of(stream(client)) == TEACHER
    assert proxy.records()[0]["fallback"] == said


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["delta", "content", "logprobs", "logprob", "finish_reason"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={"choices": SHAPES | st.lists(SHAPES), "usage": SHAPES}) | SHAPES)
def test_whatever_an_engine_says_is_a_step_or_a_failure(event: Any) -> None:
    try:
        step = _step(json.dumps(event).encode())
    except (CandidateFailed, *SHAPE_ERRORS):
        return
    assert isinstance(step.text, str)
    assert step.finish in (None, "stop", "length")


@given(st.binary(max_size=30))
def test_bytes_that_are_no_event_are_no_step(raw: bytes) -> None:
    with pytest.raises(SHAPE_ERRORS):
        _step(raw)


async def test_shadow_counts_a_malformed_or_cut_answer_as_it_would_go_out(log: Log) -> None:
    """Of the engine's two tokens the first is as likely as said, the second is certain."""
    student = Engine(lambda text: {"hard": ("billing", 0.25), "odd": ("nonsense", 1.0)}.get(text, ("billing", 1.0)))
    candidate, ids = known(log), [*insert(log, ["hard", "odd"]), *insert(log, ["cut"], answer="billing, and more")]
    with serving(student.app) as url:
        async with aiohttp.ClientSession() as session:
            asked = route_to(url, first_tokens=1)
            assert await shadow(log, session, candidate, asked, 2, 2) == 2
            student.finish = "length"
            assert await shadow(log, session, candidate, asked, 2, 2) == 1
    rows = log.query("SELECT exchange, verdict, covered, confidence, answer, error FROM verdicts")
    assert {row[0]: row[1:] for row in rows} == {
        ids[0]: (1.0, False, pytest.approx(0.25), "billing", None),
        ids[1]: (0.0, True, 1.0, "nonsense", None),
        ids[2]: (0.0, True, 1.0, "billing", None),
    }


def test_how_many_tokens_decide_is_what_the_students_card_says_and_no_setting_changes_it(log: Log) -> None:
    candidate = known(log)
    settings = RouterSettings(tasks={TASK: TaskSettings(first_tokens=8)}, hold_seconds=0.5)
    told = route(candidate, settings, "http://x")
    assert (told.first_tokens, told.hold) == (0, 0.5)  # Students of before do not say.
    later = known(log, "student-2", card={**candidate.card, "first_tokens": 4})
    assert route(later, settings, "http://x").first_tokens == 4
