import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import given
from hypothesis import strategies as st

from proxy.app import create_app
from proxy.deciding import Asked, CandidateFailed, Decide, Decision, always_teacher
from proxy.derive import CHAT, derive
from proxy.errors import BadInput, envelope
from proxy.settings import ProxySettings, SpoolSettings, SunsetSettings, TeacherSettings
from proxy.sunset import MISSED_SECONDS, Succession, check_sunsets, is_gone
from tests.proxies import Proxy
from tests.proxy.test_usage import JSON, SPELLINGS, same
from tests.servers import eventually, serving

DAY = datetime(2026, 3, 31, tzinfo=UTC).timestamp()
OLD = SunsetSettings("gpt-4o", date(2026, 3, 31), "gpt-5")
UNDATED = SunsetSettings("gpt-4", None, "gpt-5")
UNFOLLOWED = SunsetSettings("gpt-3", date(2026, 3, 31))
SUCCESSION = Succession([OLD, UNDATED, UNFOLLOWED])


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4), st.data())
def test_only_the_name_changes_and_every_other_byte_stays(
    before: dict[str, Any], after: dict[str, Any], data: st.DataObject
) -> None:
    whole = {**before, "model": "gpt-4o", **{key: value for key, value in after.items() if key != "model"}}
    body = data.draw(st.sampled_from(SPELLINGS))(whole)
    succeeded = SUCCESSION(body, DAY)
    assert succeeded is not None
    assert json.loads(succeeded.body) == {**whole, "model": "gpt-5"}
    head, tail = same(body, succeeded.body), same(body[::-1], succeeded.body[::-1])
    assert head + tail >= len(body) - len("4o")
    assert (succeeded.successor, succeeded.model) == ("gpt-5", "gpt-4o")


@pytest.mark.parametrize(
    ("body", "now"),
    [
        (b'{"model":"gpt-4o"}', DAY - 1),
        (b'{"model":"gpt-4o-mini"}', DAY),
        (b'{"model":"gpt-4"}', DAY),
        (b'{"model":"gpt-3"}', DAY),
        (b'{"model":["gpt-4o"]}', DAY),
        (b'{"messages":[{"model":"gpt-4o"}]}', DAY),
        (b'{"model":"gpt-4o","model":"gpt-6"}', DAY),
        (b'{"model":"gpt-4o"', DAY),
        (b'{"model":"gpt-4o","user":"\xff"}', DAY),
        (b'["model"]', DAY),
        (b'"model"' + b"[" * 100_000, DAY),
        (b"", DAY),
    ],
)
def test_what_has_not_ended_or_cannot_be_read_goes_as_it_came(body: bytes, now: float) -> None:
    assert SUCCESSION(body, now) is None


def test_a_model_that_was_missed_has_ended_for_a_while() -> None:
    succession, body = Succession([UNDATED]), b'{"model":"gpt-4"}'
    assert succession(body, DAY) is None
    assert succession.instead(body) == (b'{"model":"gpt-5"}', "gpt-5", "gpt-4")
    succession.missed("gpt-4", DAY)
    assert succession(body, DAY + MISSED_SECONDS - 1) == succession.instead(body)
    assert succession(b'{"model":"gpt-4o"}', DAY) is None
    assert succession(body, DAY + MISSED_SECONDS) is None
    assert succession(body, DAY) is None  # Forgotten.


def test_of_a_key_given_twice_the_last_counts() -> None:
    succeeded = SUCCESSION(b'{"model":"gpt-6", "model" : "gpt-4o" }', DAY)
    assert succeeded is not None
    assert succeeded.body == b'{"model":"gpt-6", "model" : "gpt-5" }'


def test_only_a_404_about_the_model_says_that_it_is_gone() -> None:
    body = b'{"error": {"message": "The model does not exist", "code": "model_not_found"}}'
    assert is_gone(404, body)
    assert not is_gone(400, body)
    assert not is_gone(404, b"<h1>Not Found</h1>")


@pytest.mark.parametrize(
    ("sunsets", "said"),
    [
        ([SunsetSettings(shutdown=date(2026, 1, 1))], r"teacher.sunsets\[0\] needs the model"),
        ([OLD, OLD], "'gpt-4o' is there twice"),
        ([OLD, SunsetSettings("gpt-5", date(2027, 1, 1), "gpt-6")], r"sunsets\[0\].successor 'gpt-5' ends too"),
        ([SunsetSettings("gpt-4o", None, "gpt-4o")], "'gpt-4o' ends too"),
    ],
)
def test_sunsets_that_make_no_sense_are_refused(sunsets: list[SunsetSettings], said: str) -> None:
    check_sunsets([OLD, UNDATED, UNFOLLOWED])
    with pytest.raises(BadInput, match=said):
        check_sunsets(sunsets)


def failing_candidate(asked: Asked) -> Decision:
    async def fail() -> Any:
        raise CandidateFailed("unsure", 0.25)

    return Decision("student-1", "live", fail)


@contextmanager
def succeeding(
    spool: Path, decide: Decide = always_teacher, code: str = "model_not_found", day: date | None = OLD.shutdown
) -> Iterator[tuple[Proxy, list[bytes]]]:
    """A proxy whose teacher tells which model answered it, and has no gpt-4o; `day` is what the proxy knows."""
    got: list[bytes] = []
    teacher = FastAPI()

    @teacher.post(CHAT)
    async def chat(request: Request) -> Response:
        got.append(await request.body())
        asked = json.loads(got[-1])
        if asked["model"] == "gpt-4o":
            refused = gzip.compress(envelope("no such thing", "invalid_request_error", code))
            return Response(refused, 404, {"content-encoding": "gzip"}, "application/json")
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return Response(json.dumps({"model": asked["model"], "choices": [choice]}), media_type="application/json")

    with serving(teacher) as url:
        settings = TeacherSettings(url=url, sunsets=(SunsetSettings("gpt-4o", day, "gpt-5"),))
        app = create_app(ProxySettings(), settings, SpoolSettings(rotate_seconds=0.05), spool, decide)
        with serving(app) as proxied:
            yield Proxy(proxied, spool), got


@pytest.mark.parametrize(
    ("decide", "header"),
    [
        (always_teacher, "successor gpt-5 for gpt-4o; no router"),
        (failing_candidate, "successor gpt-5 for gpt-4o; live; unsure"),
    ],
)
def test_after_its_day_the_successor_answers_and_both_headers_and_log_say_so(
    tmp_path: Path, decide: Decide, header: str
) -> None:
    body = b'{"messages": [ {"role":"user","content":"gpt-4o?"} ] , "model" :"gpt-4o"}'
    with succeeding(tmp_path, decide) as (proxy, got):
        answer = httpx.post(f"{proxy.url}/chat/completions", content=body)
        assert answer.json()["model"] == "gpt-5"
        assert answer.headers["x-stillroom-served-by"] == "teacher"
        assert answer.headers["x-stillroom-reason"] == header
        (record,) = eventually(proxy.records)
    assert got == [body.replace(b':"gpt-4o"', b':"gpt-5"')]
    assert record["reason"].startswith("successor gpt-5 for gpt-4o; ")
    # It is paid for as who answered.
    assert derive(CHAT, None, record["request"], 200, False, record["response"]).model == "gpt-5"


def test_other_models_are_relayed_byte_for_byte(tmp_path: Path) -> None:
    body = b'{ "model" : "gpt-4.1", "messages": [] }'
    with succeeding(tmp_path) as (proxy, got):
        answer = httpx.post(f"{proxy.url}/chat/completions", content=body)
    assert got == [body]
    assert answer.headers["x-stillroom-reason"] == "no router"


def test_before_its_day_a_model_that_is_missed_is_asked_of_its_successor_at_once(tmp_path: Path) -> None:
    body = b'{"model" : "gpt-4o" , "stream":true, "messages":[]}'
    with succeeding(tmp_path, day=None) as (proxy, got):
        answers = [httpx.post(f"{proxy.url}/chat/completions", content=body) for _ in range(3)]
        records = eventually(lambda: found if len(found := proxy.records()) == 3 else None)
    reasons = ["successor gpt-5 for missing gpt-4o; no router", *["successor gpt-5 for gpt-4o; no router"] * 2]
    assert [answer.headers["x-stillroom-reason"] for answer in answers] == reasons
    assert [record["reason"] for record in records] == reasons
    assert {answer.json()["model"] for answer in answers} == {"gpt-5"}
    assert {record["request"] for record in records} == {body.decode().replace("4o", "5")}
    assert [json.loads(one)["model"] for one in got] == ["gpt-4o", "gpt-5", "gpt-5", "gpt-5"]
    assert all(json.loads(one)["stream_options"] == {"include_usage": True} for one in got)


def test_any_other_404_comes_back_as_it_was(tmp_path: Path) -> None:
    with succeeding(tmp_path, code="unknown_url", day=None) as (proxy, got):
        answer = httpx.post(f"{proxy.url}/chat/completions", content=b'{"model":"gpt-4o"}')
    assert (answer.status_code, answer.headers["content-encoding"]) == (404, "gzip")
    assert answer.json()["error"]["code"] == "unknown_url"
    assert answer.headers["x-stillroom-reason"] == "no router"
    assert len(got) == 1
